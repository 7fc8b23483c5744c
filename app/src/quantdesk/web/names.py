"""The names of symbols and users that requests may have."""

import re
from typing import Any, Final

from litestar.openapi.spec import Schema
from litestar.openapi.spec.enums import OpenAPIType

SYMBOL: Final = re.compile(r"[A-Z0-9][A-Z0-9._-]{0,31}", re.ASCII)
USER: Final = re.compile(r"[A-Za-z0-9._@-]{1,64}", re.ASCII)

USER_SCHEMA: Final = Schema(
    type=OpenAPIType.STRING, pattern=f"^{USER.pattern}$", description="A user's name"
)


def optional_text(pattern: re.Pattern[str]) -> dict[str, Any]:
    """Return the schema of a parameter that may be left out: text, and never null."""
    return {"one_of": None, "type": OpenAPIType.STRING, "pattern": f"^{pattern.pattern}$"}
