"""What modules document that log in to a running server; the options themselves are in module_utils/redis_server.py."""

from __future__ import annotations


class ModuleDocFragment:
    """What Ansible loads."""

    DOCUMENTATION = r"""
options:
  server:
    description: How to reach the server.
    type: dict
    suboptions:
      host: {description: Its address., type: str, default: 127.0.0.1}
      port: {description: Its port., type: int, required: true}
      ca_file: {description: The authorities that may have signed its certificate; TLS is used with them., type: path}
      server_name: {description: The name in its certificate., type: str}
      cert_file: {description: The certificate to show., type: path}
      key_file: {description: Its key., type: path}
  logins:
    description: Logins that it may know, the wanted one first.
    type: list
    elements: dict
    default: []
    suboptions:
      username: {description: The user., type: str, default: default}
      password: {description: The password., type: str}
  credentials_file: {description: The login that this host knew last; tried after O(logins)., type: path}
  trusted_unit:
    description:
      - The unit whose process is taken for the server although it shows a certificate that O(server.ca_file) has not
        signed, as it does when its files were replaced since it started. No other process gets a password.
    type: str
  timeout: {description: Seconds for a connection and each reply., type: float, default: 5}
  loading_timeout: {description: Seconds for a server that loads its data., type: float, default: 60}
"""
