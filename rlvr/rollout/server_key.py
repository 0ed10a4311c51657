"""The key of vLLM servers: in an environment variable, or in a file that only its owner reads.

``rlvr serve`` lets nothing through without the key, also on loopback, where every user of the
machine can connect. Where the variable is not set, server and engine read the same file,
``~/.config/rlvr/server_key``, which the first ``rlvr serve`` makes. The key is never an argument of
a command, because every user can list those.
"""

import os
import secrets
from pathlib import Path

KEY_VARIABLE = "VLLM_API_KEY"
_SHORTEST = 16
_OTHERS = 0o077


def key_file() -> Path:
    """Where the key is if the environment has none.

    Raises:
        ValueError: This user has no home folder.
    """
    try:
        base = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    except RuntimeError:
        raise ValueError(
            f"there is no home folder for the servers' key; set {KEY_VARIABLE}"
        ) from None
    return Path(base) / "rlvr" / "server_key"


def find_key(variable: str = KEY_VARIABLE) -> str | None:
    """The key from the environment, or else from the file; None if there is neither.

    Raises:
        ValueError: The key is unfit, or others can read its file. No message holds the key.
    """
    if key := os.environ.get(variable):
        return _sound(key, f"the environment variable {variable}")
    path = key_file()
    return _read(path) if os.path.isfile(path) else None


def ensure_key() -> bool:
    """Make a key in the file if there is none; whether one was made.

    Raises:
        ValueError: The key that there is is unfit, or the file cannot be written.
    """
    if find_key() is not None:
        return False
    path = key_file()
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Written apart and linked: two servers that start together end up with the same whole key.
        whole = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
        with open(os.open(whole, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w") as file:
            file.write(secrets.token_hex(32) + "\n")
        try:
            os.link(whole, path)
        except FileExistsError:
            return False
        finally:
            whole.unlink()
    except OSError as error:
        raise ValueError(
            f"the servers' key cannot be written to {path}: {error.strerror}; set {KEY_VARIABLE}"
        ) from None
    return True


def _read(path: Path) -> str:
    try:
        with path.open(encoding="utf-8") as file:
            status = os.fstat(file.fileno())
            text = file.read()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(
            f"the servers' key in {path} cannot be read ({type(error).__name__}); remove the file"
        ) from None
    if status.st_mode & _OTHERS or status.st_uid != os.geteuid():
        raise ValueError(
            f"others than you can read or change the servers' key in {path} (mode "
            f"{status.st_mode & 0o777:o}); remove the file, and the next rlvr serve makes a new key"
        )
    return _sound(text.strip(), str(path))


def _sound(key: str, where: str) -> str:
    if len(key) < _SHORTEST or not (key.isascii() and key.isprintable()) or key != key.strip():
        raise ValueError(
            f"the servers' key in {where} must have at least {_SHORTEST} printable ASCII "
            "characters and no space at its ends; for example: openssl rand -hex 32"
        )
    return key
