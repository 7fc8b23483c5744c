"""Programs that break things under load and report what clients saw.

    python -m drills.outage        Redis killed, frozen and unreachable under a steady load
    python -m drills.cold          a thousand requests for one key that is not cached
    python -m drills.fanout        price updates to WebSockets through two instances
    python -m drills.interrupt     site.yml killed at each task that changes something

Each starts servers of its own on loopback and ends them, the last one a lab. They need `requirements/install bench`,
the last one `requirements/install test`.
"""
