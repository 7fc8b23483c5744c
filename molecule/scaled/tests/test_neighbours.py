"""What others had on the hosts before: it is there, and works where it is to be kept. See untidy.sh."""

from __future__ import annotations

from conftest import ADDRESSES, connect


def test_the_database_of_others_has_all_that_it_had() -> None:
    db1 = connect("db1")
    # As its clients come: by its own line, in plaintext, with its password.
    way = f"host={ADDRESSES['db1']} user=shop dbname=shop sslmode=disable"
    asked = f"PGPASSWORD=of-the-shop psql --no-psqlrc -Atc 'SELECT count(*), sum(id) FROM orders' '{way}'"
    assert db1.check_output(asked) == "100|5050"
    assert "no pg_hba.conf entry" in db1.run(asked.replace("dbname=shop", "dbname=quantdesk")).stderr
    hba = db1.file("/etc/postgresql/15/main/pg_hba.conf").content_string
    assert hba.index("hostssl  quantdesk") < hba.index("From before") < hba.index("host  shop  shop")


def test_the_configuration_from_before_is_kept_beside_ours() -> None:
    lb1 = connect("lb1")
    (kept,) = lb1.check_output("ls /etc/haproxy/haproxy.cfg.*").splitlines()
    assert "frontend shop" in lb1.file(kept).content_string
    assert "frontend shop" not in lb1.file("/etc/haproxy/haproxy.cfg").content_string
    assert not lb1.socket("tcp://0.0.0.0:8080").is_listening
