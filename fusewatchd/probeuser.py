"""As whom a mount must be asked; pure."""

from __future__ import annotations

from fusewatchd.model import Mount


def credentials_of(mount: Mount) -> tuple[int | None, int | None]:
    """Return whom a probe of this mount must be, (None, None) for the daemon itself.

    Without ``allow_other`` the kernel answers everybody but the mount's owner by itself, with
    success, even when the server is dead (fs/fuse/dir.c, fuse_allow_current_process).
    """
    options = dict(option.partition("=")[::2] for option in mount.super_options.split(","))
    if "allow_other" in options or not mount.fs_type.startswith("fuse"):
        return None, None
    uid, gid = options.get("user_id", "0"), options.get("group_id", "0")
    if not (uid.isdigit() and gid.isdigit()) or (uid == "0" and gid == "0"):
        return None, None
    return int(uid), int(gid)
