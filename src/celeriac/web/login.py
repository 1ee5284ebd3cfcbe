"""The form for a token. It is all that a browser gets without one, so its style is in the page itself.

The policy of this page names the style by its digest: no other one is used, inline or not.
"""

from __future__ import annotations

from base64 import b64encode
from hashlib import sha256

from starlette.responses import HTMLResponse, Response

STYLE = """
:root { color-scheme: light dark; --back: #f6f7f6; --panel: #fff; --text: #1b1f23; --muted: #57606a; --line: #dfe3e1;
--accent: #1f6b48; --on-accent: #fff; }
@media (prefers-color-scheme: dark) { :root { --back: #131618; --panel: #1a1e21; --text: #e5e8ea; --muted: #9ba6b0;
--line: #2c3338; --accent: #5cc792; --on-accent: #131618; } }
* { box-sizing: border-box; }
body { margin: 0; min-height: 100vh; display: grid; place-items: center; padding: 16px; background: var(--back);
color: var(--text); font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif; }
main { width: min(380px, 100%); padding: 24px; background: var(--panel); border: 1px solid var(--line);
border-radius: 10px; }
h1 { margin: 0 0 4px; font-size: 20px; }
p { margin: 0 0 16px; color: var(--muted); }
form { display: grid; gap: 14px; }
input { display: block; width: 100%; height: 36px; margin-top: 4px; padding: 4px 10px; font: inherit; color: inherit;
background: var(--panel); border: 1px solid var(--muted); border-radius: 6px; }
[hidden] { display: none; }
button { height: 36px; font: inherit; font-weight: 550; color: var(--on-accent); background: var(--accent); border: 0;
border-radius: 6px; cursor: pointer; }
:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }
"""
DIGEST = b64encode(sha256(STYLE.encode()).digest()).decode()
POLICY = (
    f"default-src 'none'; style-src 'sha256-{DIGEST}'; img-src data:; base-uri 'none'; form-action 'self';"
    " frame-ancestors 'none'"
)
PAGE = """<!doctype html>
<html lang="en">
<head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>Celeriac: log in</title><link rel="icon" href="data:,"><style>{style}</style></head>
<body><main><h1>Celeriac</h1><p>{text}</p>
<form method="post" action="/login">
<input type="text" name="username" autocomplete="username" value="celeriac" hidden>
<label>Token <input type="password" name="token" autocomplete="current-password" required autofocus></label>
<button>Log in</button></form></main></body>
</html>
"""
ASKS = "This server asks for a token. Its owner has it."
WRONG = "This token is not known."


def login_page(*, was_wrong: bool = False) -> Response:
    """Return the form."""
    text = PAGE.format(style=STYLE, text=WRONG if was_wrong else ASKS)
    return HTMLResponse(text, 401, {"content-security-policy": POLICY})
