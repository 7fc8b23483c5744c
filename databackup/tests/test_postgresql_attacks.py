"""The application's role, and who forges a backup, against the programs that back PostgreSQL up and restore it.

Each test plays the attacker with no more than the rights of the role that owns the database, or with a backup of the
attacker's making. What they would gain: a superuser of PostgreSQL, or a shell as the user of the server.
"""

from __future__ import annotations

import contextlib
import json
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from databackup.errors import Failed
from test_sources import Base, Cluster, Repository

from conftest import load

pytestmark = pytest.mark.slow

look = load("plugins/module_utils/host_neighbours.py")


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Repository:
    return Repository(tmp_path_factory.mktemp("repository"))


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    made = Cluster()
    try:
        yield made
    finally:
        made.stop("immediate")
        shutil.rmtree(made.folder)


class Attacked(Base):
    """A database whose own role turns against whoever reads it."""

    def __init__(self, folder: Path, repository: Repository, cluster: Cluster) -> None:
        super().__init__(folder, repository, cluster)
        # A short name, and whoever gets a shell may write there.
        proofs = Path(tempfile.mkdtemp())
        proofs.chmod(0o777)
        self.proof = proofs / "p"
        # What a superuser would do for the role, wherever one evaluates it. It fails silently, so that all goes on.
        self.attack(
            f"""
            CREATE FUNCTION public.grab() RETURNS boolean LANGUAGE plpgsql AS $$
            BEGIN
              BEGIN EXECUTE 'RESET ROLE'; EXCEPTION WHEN OTHERS THEN NULL; END;
              BEGIN EXECUTE 'RESET SESSION AUTHORIZATION'; EXCEPTION WHEN OTHERS THEN NULL; END;
              BEGIN EXECUTE $x$ COPY (SELECT session_user) TO PROGRAM 'cat > {self.proof}' $x$;
              EXCEPTION WHEN OTHERS THEN NULL; END;
              BEGIN EXECUTE 'ALTER ROLE app SUPERUSER'; EXCEPTION WHEN OTHERS THEN NULL; END;
              RETURN true;
            END $$
            """
        )

    @property
    def quoted(self) -> str:
        """The database's name in SQL."""
        return '"' + self.name.replace('"', '""') + '"'

    def attack(self, statements: str) -> None:
        """Run SQL as the application does: its session is its role's, with nothing to fall back to."""
        self.cluster.log_in("app", statements, self.name)

    def gained(self) -> list[str]:
        """Return what the attacker has got; and take it away again."""
        found = []
        if self.proof.exists():
            owner = pwd.getpwuid(self.proof.stat().st_uid).pw_name
            found.append(f"a shell as {owner}: {self.proof.read_text().strip()}")
            self.proof.unlink()
        if self.cluster.sql("SELECT 1 FROM pg_roles WHERE rolname = 'app' AND rolsuper"):
            found.append("app is superuser")
            self.cluster.sql("ALTER ROLE app NOSUPERUSER")
        return found


@pytest.fixture
def base(tmp_path: Path, repository: Repository, cluster: Cluster) -> Attacked:
    return Attacked(tmp_path, repository, cluster)


def test_a_cast_of_the_role_is_not_evaluated_by_a_backup(base: Attacked) -> None:
    base.attack(
        """
        CREATE FUNCTION public.grab_row(public.orders) RETURNS text LANGUAGE sql AS $$ SELECT public.grab()::text $$;
        CREATE CAST (public.orders AS text) WITH FUNCTION public.grab_row(public.orders)
        """
    )
    made = base.backup()
    assert base.gained() == []
    # And it does not hide a change from the digest.
    base.later()
    assert base.backup()["digest"] != made["digest"]
    done = base.restore(made)
    assert base.gained() == []
    assert done["found"]["digest"] == made["digest"]


EVALUATED = {
    "a constraint": "CREATE TABLE public.bad (a int CHECK (public.grab())); INSERT INTO public.bad VALUES (1)",
    "a domain": "CREATE DOMAIN public.d AS int CHECK (public.grab()); CREATE TABLE public.bad (a public.d); "
    "INSERT INTO public.bad VALUES (1)",
    "an index": "CREATE FUNCTION public.i(int) RETURNS boolean IMMUTABLE LANGUAGE sql AS 'SELECT public.grab()'; "
    "CREATE TABLE public.bad (a int); INSERT INTO public.bad VALUES (1); CREATE INDEX ON public.bad (public.i(a))",
    "a generated column": "CREATE FUNCTION public.i(int) RETURNS boolean IMMUTABLE LANGUAGE sql AS "
    "'SELECT public.grab()'; CREATE TABLE public.bad (a int, b boolean GENERATED ALWAYS AS (public.i(a)) STORED); "
    "INSERT INTO public.bad VALUES (1)",
    "a partition key": "CREATE FUNCTION public.i(int) RETURNS boolean IMMUTABLE LANGUAGE sql AS "
    "'SELECT public.grab()'; CREATE TABLE public.bad (a int) PARTITION BY LIST (public.i(a)); "
    "CREATE TABLE public.bad_1 PARTITION OF public.bad FOR VALUES IN (true); INSERT INTO public.bad VALUES (1)",
    "a materialized view": "CREATE MATERIALIZED VIEW public.bad AS SELECT public.grab()",
    "an operator": "CREATE FUNCTION public.less(public.orders, public.orders) RETURNS boolean LANGUAGE sql AS "
    "'SELECT public.grab()'; CREATE OPERATOR public.< (FUNCTION = public.less, LEFTARG = public.orders, "
    "RIGHTARG = public.orders); CREATE TABLE public.bad (a public.orders CHECK (a OPERATOR(public.<) a)); "
    "INSERT INTO public.bad VALUES (ROW(1, '', 1))",
}


@pytest.mark.parametrize("statements", EVALUATED.values(), ids=EVALUATED)
def test_what_a_restore_evaluates_has_the_rights_of_the_role(base: Attacked, statements: str) -> None:
    base.attack(statements)
    made = base.backup()
    assert base.gained() == []
    done = base.restore(made)
    assert base.gained() == []
    assert done["found"]["digest"] == made["digest"]


def test_sql_in_a_forged_dump_has_the_rights_of_the_role(base: Attacked) -> None:
    room = "A" * 300
    base.attack(f"COMMENT ON TABLE public.orders IS '{room}'")
    made = base.backup()
    evil = (
        "'; RESET ROLE; RESET SESSION AUTHORIZATION; "
        f"COPY (SELECT session_user) TO PROGRAM 'cat > {base.proof}'; ALTER ROLE app SUPERUSER; --"
    )
    forged = base.repository.damaged(
        made, "dump", lambda data: data.replace(room.encode(), evil.ljust(len(room)).encode())
    )
    before = base.cluster.summary(base.name)
    with pytest.raises(Failed, match="The data from before are in place"):
        base.restore({**made, **forged})
    assert base.gained() == []
    assert base.cluster.summary(base.name) == before


def test_an_encoding_does_not_turn_a_name_into_a_command(base: Attacked) -> None:
    # In Shift JIS the second byte of 表 is a backslash. Read as UTF-8 the bytes hold an escape, u0022 a quote, and the
    # first byte of a pair before it, which takes that quote for its second one.
    name = f"ﾃ表u0022\\! id -un >{base.proof} #"
    assert len(name.encode()) < 64
    base.attack(f"""CREATE TABLE public."{name.replace('"', '""')}" (a int);
                    ALTER DATABASE {base.quoted} SET client_encoding = 'SJIS'""")
    made: dict[str, Any] = {}
    with contextlib.suppress(Failed):
        made = base.backup()
    assert base.gained() == []
    done = base.restore(made)
    assert base.gained() == []
    assert done["found"]["digest"] == made["digest"]


def test_settings_of_a_database_do_not_change_how_a_restore_reads_the_others(base: Attacked) -> None:
    base.attack(
        f"""ALTER DATABASE {base.quoted} SET client_encoding = 'SJIS';
            ALTER DATABASE {base.quoted} SET application_name = 'x Á';
            ALTER DATABASE {base.quoted} SET search_path = '\\! id -un >{base.proof} #', 'public';
            ALTER DATABASE {base.quoted} SET default_transaction_read_only = on;
            ALTER DATABASE {base.quoted} SET work_mem = '7MB';
            ALTER ROLE app IN DATABASE {base.quoted} SET statement_timeout = '9s'"""
    )
    facts = (
        "SELECT setrole, setconfig FROM pg_db_role_setting s JOIN pg_database d ON setdatabase = d.oid WHERE datname ="
    )
    name = "'" + base.name.replace("'", "''") + "' ORDER BY setrole"
    before = base.cluster.sql(f"{facts} {name}")
    done = base.restore(base.backup())
    assert base.gained() == []
    assert len(before) == 2
    assert base.cluster.sql(f"{facts} {name}") == before
    assert done["found"] == done["expected"]


def test_rows_that_a_policy_hides_are_not_missing_from_a_backup(base: Attacked) -> None:
    # The owner sees all of them, unless it says otherwise.
    base.attack(
        "CREATE POLICY none ON public.orders USING (false); ALTER TABLE public.orders ENABLE ROW LEVEL SECURITY"
    )
    made = base.backup()
    assert made["items"] == 2053
    base.attack("ALTER ROLE app SET row_security = on; ALTER TABLE public.orders FORCE ROW LEVEL SECURITY")
    try:
        with pytest.raises(
            Failed, match=r"table public\.orders hides rows from its owner.*NO FORCE ROW LEVEL SECURITY"
        ):
            base.backup()
        assert base.restore(made)["found"]["keys"] == 2053
    finally:
        base.cluster.sql("ALTER ROLE app RESET ALL")


def test_tables_of_others_are_named_when_they_cannot_be_read(base: Attacked) -> None:
    base.sql('CREATE TABLE public."of others" (a int)')
    with pytest.raises(Failed, match=r"table public\.of others belongs to \w+; expected an owner that app may act as"):
        base.backup()


def test_settings_of_the_role_do_not_cut_a_backup_or_restore(base: Attacked) -> None:
    settings = (
        "default_transaction_read_only = on",
        "default_transaction_isolation = 'serializable'",
        "statement_timeout = '1ms'",
        "lock_timeout = '1ms'",
        "search_path = 'public, pg_catalog'",
        "client_encoding = 'LATIN1'",
        "standard_conforming_strings = off",
        "quote_all_identifiers = on",
        "bytea_output = 'escape'",
        "client_min_messages = 'debug5'",
        "DateStyle = 'German'",
    )
    base.attack("; ".join(f"ALTER ROLE app SET {setting}" for setting in settings))
    try:
        digest = base.cluster.summary(base.name).digest
        made = base.backup()
        assert made["digest"] == digest
        assert base.restore(made)["found"]["digest"] == digest
    finally:
        base.cluster.sql("ALTER ROLE app RESET ALL")


def test_rights_that_others_passed_on_are_restored_and_lost_ones_are_told(base: Attacked) -> None:
    base.attack(
        """GRANT SELECT ON public.orders TO reader WITH GRANT OPTION; GRANT SELECT ON public.parts TO reader;
        ALTER DEFAULT PRIVILEGES GRANT SELECT ON TABLES TO reader"""
    )
    base.sql("SET SESSION AUTHORIZATION reader; GRANT SELECT ON public.orders TO other")
    base.cluster.sql("CREATE ROLE gone")
    base.attack("GRANT UPDATE ON public.parts TO gone")
    said: list[str] = []
    base.say = said.append
    made = base.backup()
    base.attack("REVOKE ALL ON public.parts FROM gone")
    base.cluster.sql("DROP ROLE gone")
    done = base.restore(made)
    assert done["found"] == done["expected"]
    rights = [f"has_table_privilege('{role}', 'public.{table}', 'SELECT')" for role, table in (
        ("reader", "orders"), ("other", "orders"), ("reader", "parts"))]  # fmt: skip
    base.attack("CREATE TABLE public.new (a int)")
    rights.append("has_table_privilege('reader', 'public.new', 'SELECT')")
    assert base.sql(f"SELECT {', '.join(rights)}") == ["t|t|t|t"]
    assert any(
        '1 rights are not restored: GRANT UPDATE ON TABLE public.parts TO gone: role "gone"' in text for text in said
    )


def test_extensions_that_need_a_superuser_come_from_the_server_and_not_from_the_dump(base: Attacked) -> None:
    base.sql("CREATE EXTENSION pg_stat_statements SCHEMA public")
    made = base.backup()
    assert base.restore(made)["found"]["digest"] == made["digest"]
    named = "SELECT extowner::regrole FROM pg_extension WHERE extname = 'pg_stat_statements'"
    assert base.sql(named) != ["app"]
    # On a bare server the inventory names them.
    base.cluster.sql(f"DROP DATABASE {base.quoted}")
    with pytest.raises(Failed, match='permission denied to create extension "pg_stat_statements"'):
        base.restore(made)
    base.source.options["extensions"] = ["pg_stat_statements"]
    assert base.restore(made)["found"]["digest"] == made["digest"]
    assert base.sql(named) != ["app"]
    base.attack("CREATE TABLE public.mine (a int)")
    assert base.sql("SELECT datconnlimit FROM pg_database WHERE datname = current_database()") == ["-1"]


def test_a_backup_of_before_is_compared_as_it_was_made(base: Attacked) -> None:
    base.attack(
        """
        CREATE FUNCTION public.same(public.orders) RETURNS text LANGUAGE sql AS $$ SELECT public.grab()::text $$;
        CREATE CAST (public.orders AS text) WITH FUNCTION public.same(public.orders)
        """
    )
    made = base.backup()
    with_cast = base.cluster.summary(base.name, "cast").digest
    base.gained()
    assert with_cast != made["digest"]
    old = {name: value for name, value in made.items() if name != "row_text"}
    done = base.restore({**old, "digest": with_cast})
    assert base.gained() == []
    assert done["found"]["digest"] == with_cast


def test_the_server_is_known_by_what_its_catalog_holds(cluster: Cluster) -> None:
    # As in clusters that came from PostgreSQL 14 or older: whoever logs in may create functions there.
    types = "text, json, text, json, text, text, text, integer"
    cluster.sql("GRANT CREATE ON SCHEMA public TO PUBLIC")
    cluster.log_in(
        "app",
        f"""CREATE FUNCTION public.json_build_object({types}) RETURNS json LANGUAGE plpgsql AS $$
        BEGIN ALTER ROLE app SUPERUSER; RETURN '{{}}'; END $$""",
        "postgres",
    )
    words = ["psql", "-X", "-qAtc", look.QUESTION, "-h", str(cluster.folder), "-p", str(cluster.port), "postgres"]
    told = subprocess.run(words, cwd="/", capture_output=True, text=True, check=True, **cluster.identity).stdout
    assert cluster.sql("SELECT rolsuper FROM pg_roles WHERE rolname = 'app'") == ["f"]
    assert json.loads(told)["roles"]["app"] is False
