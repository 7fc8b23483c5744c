"""Programs that break things under load and report what clients saw.

    python -m drills.outage        Redis killed, frozen and unreachable under a steady load
    python -m drills.cold          a thousand requests for one key that is not cached
    python -m drills.fanout        price updates to WebSockets through two instances

Each starts servers of its own on loopback and ends them. They need `requirements/install bench`.
"""
