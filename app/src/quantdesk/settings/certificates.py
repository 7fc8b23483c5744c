"""Certificates in settings: files that are named by a pair of variables."""

import ssl
from pathlib import Path

from quantdesk.settings.reader import Reader, shown


def read_certificate(
    reader: Reader, cert_name: str, key_name: str
) -> tuple[Path | None, Path | None]:
    """Return the files of a certificate and of its key, which are set together."""
    cert_file, key_file = reader.file(cert_name), reader.file(key_name)
    has_cert, has_key = reader.text(cert_name), reader.text(key_name)
    if has_cert and not has_key:
        reader.problem(key_name, "nothing", f"the key of the certificate in {cert_name}")
    if has_key and not has_cert:
        reader.problem(cert_name, "nothing", f"the certificate of the key in {key_name}")
    if cert_file is not None and key_file is not None:
        try:
            # An empty passphrase: an encrypted key must fail here, not ask on the terminal.
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(
                cert_file, key_file, password=""
            )
        except ssl.SSLError:
            reader.problem(
                cert_name,
                shown(str(cert_file)),
                f"a PEM certificate whose unencrypted key is in {key_name}",
            )
    return cert_file, key_file
