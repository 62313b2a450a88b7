"""What our HTML pages share: text as HTML, data as a JSON island, and a policy that allows a page's own parts only.

A page with a script builds everything it shows from text nodes. Its Content-Security-Policy allows the one script and
the one style sheet by their hashes and nothing else, and trusted types forbid turning text into markup, so hostile text
stays text even if the escaping of the island were wrong.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html import escape
from typing import Any

ISLAND, POLICY = "/*DATA*/", "/*POLICY*/"
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff]")
# "<" could close the island, the line separators end lines in old parsers, a lone surrogate can't be written as UTF-8
_UNSAFE = re.compile("[<>&\u2028\u2029\ud800-\udfff]")


def text(value: object) -> str:
    """A value as HTML text; what no HTML file can hold becomes the replacement character."""
    return escape(_CONTROL.sub("\ufffd", str(value)))


def fill_script_page(template: str, data: Any, connect: str = "") -> str:
    """A page of one <style>, one <script> and the JSON island, with its policy and its data filled in.

    `connect` is where its script may fetch from ("'self'"), "" for nowhere.
    """
    script = template.partition("<script>")[2].partition("</script>")[0]
    style = template.partition("<style>")[2].partition("</style>")[0]
    policy = (
        f"default-src 'none'; script-src {policy_hash(script)}; style-src {policy_hash(style)}; base-uri 'none'; "
        "form-action 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
    )
    policy += f"; connect-src {connect}" if connect else ""
    island = _UNSAFE.sub(lambda found: f"\\u{ord(found[0]):04x}", json.dumps(data, ensure_ascii=False, allow_nan=False))
    # the parts are joined, never searched again: the data may hold any text, placeholders among it
    before, _, rest = template.partition(POLICY)
    middle, _, after = rest.partition(ISLAND)
    return "".join([before, policy, middle, island, after])


def policy_hash(part: str) -> str:
    """A Content-Security-Policy source that allows exactly this inline text."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(part.encode()).digest()).decode()}'"
