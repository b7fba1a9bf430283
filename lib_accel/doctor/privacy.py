"""Takes out of a text what says who and where its writer is."""

from __future__ import annotations

import getpass
import platform
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

# Names that many machines share say nothing; hiding them would make reports hard to read.
_COMMON_NAMES = {
    "",
    "root",
    "user",
    "home",
    "users",
    "admin",
    "administrator",
    "ubuntu",
    "localhost",
    "nobody",
}

_SECRET_NAME = re.compile(
    r"TOKEN|SECRET|PASS|KEY|AUTH|CREDENTIAL|COOKIE|SESSION|PROXY|INDEX_URL", re.IGNORECASE
)
_SHORTEST_SECRET = 6  # a KEY of "1" is a switch

_START = r"(?:[A-Za-z]:[\\/]|\\\\|/(?!/))"  # of a path: a drive, a share or a slash
# Between quotes a path may hold spaces.
_QUOTED_PATHS = (re.compile(rf"(?<='){_START}[^'\n]*(?=')"), re.compile(rf'(?<="){_START}[^"\n]*(?=")'))
_PATHS = (
    re.compile(r"file://[^\s'\",;|<>]*"),
    # Not inside a word or an address, but behind a compiler's -I and -L.
    re.compile(rf"(?:(?<![\w/.~$%>])|(?<=-[IL])){_START}[^\s'\",;|<>]*[^\s'\",;:|<>.)]"),
)
_LIBRARY = re.compile(r"[\w.+-]+\.(?:so(?:\.\d+)*|dll|dylib)")
_LOGIN = re.compile(r"(?<=://)[^/\s@]+@")
_HUB_TOKEN = re.compile(r"\bhf_\w{8,}")


@dataclass(frozen=True)
class Private:
    """What must not be in a text that is meant for others."""

    users: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()
    folders: tuple[str, ...] = ()  # paths, which may hold spaces
    secrets: tuple[str, ...] = ()

    def hide(self, text: str) -> str:
        """The text with marks like `<user>` instead."""
        for secret in self.secrets:
            text = text.replace(secret, "<secret>")
        text = _HUB_TOKEN.sub("<secret>", _LOGIN.sub("<login>@", text))
        for path in _QUOTED_PATHS:
            text = path.sub(_mark_of_path, text)
        # The longest first: a folder may lie in another one.
        for folder in sorted(self.folders, key=len, reverse=True):
            path = re.compile(rf"{re.escape(folder)}(?!\w)[^\s'\",;:|<>]*", re.IGNORECASE)
            text = path.sub(_mark_of_path, text)
        for path in _PATHS:
            text = path.sub(_mark_of_path, text)
        for names, mark in ((self.users, "<user>"), (self.hosts, "<host>")):
            for name in names:
                text = re.sub(rf"(?<![^\W_]){re.escape(name)}(?![^\W_])", mark, text, flags=re.IGNORECASE)
        return text


def _mark_of_path(found: re.Match[str]) -> str:
    """A library's name helps and is nobody's; any other part of a path may be a name."""
    name = re.split(r"[\\/]", found[0])[-1]
    return f"<path>/{name}" if _LIBRARY.fullmatch(name) else "<path>"


def private_words(environment: Mapping[str, str], folders: tuple[Path, ...] = ()) -> Private:
    """What is private on this machine; `folders` are hidden besides the home folder."""
    home = Path.home()
    paths = {form for folder in (home, *folders) for form in _forms(folder)}
    host = platform.node()
    names = ("USER", "USERNAME", "LOGNAME", "SUDO_USER")
    users = {home.name, _login(), *(environment.get(name, "") for name in names)}
    hosts = {
        host,
        host.split(".")[0],
        *(environment.get(name, "") for name in ("HOSTNAME", "COMPUTERNAME", "USERDOMAIN")),
    }
    return Private(
        users=_telling(users),
        hosts=_telling(hosts),
        folders=tuple(path for path in sorted(paths) if len(path) > 1),
        secrets=tuple(
            value
            for name, value in environment.items()
            if _SECRET_NAME.search(name) and len(value) >= _SHORTEST_SECRET
        ),
    )


def _login() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):  # no entry for this user number, no such list on this system
        return ""


def _forms(folder: Path) -> Iterator[str]:
    """A folder as it may be spelled in messages: as given, resolved, and as Python quotes backslashes."""
    for form in (folder.absolute(), folder.resolve()):
        yield str(form)
        yield str(form).replace("\\", "\\\\")
        yield form.as_posix()


def _telling(names: set[str]) -> tuple[str, ...]:
    kept = {name for name in names if name.lower() not in _COMMON_NAMES and len(name) > 1}
    return tuple(sorted(kept, key=len, reverse=True))
