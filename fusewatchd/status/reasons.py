"""What each reason means, why a mount is not being recovered, and what to do about it."""

from __future__ import annotations

from collections.abc import Mapping

from fusewatchd.model.verdicts import Reason
from fusewatchd.status.advice import (
    IT_PASSES,
    NOTHING,
    RESTART,
    RETRIES,
    WHEN_BACK,
    Advice,
)

REASONS: Mapping[Reason, Advice] = {
    Reason.NONE: Advice(
        "Nothing prevents a recovery.",
        NOTHING,
        "fusewatchd replaces it as soon as it is stale and its source answers.",
    ),
    Reason.NO_SOURCE: Advice(
        "The source of the mount is not known. fusewatchd never saw its file system mounted outside"
        " the pods, and no driver that it knows has this layout. Either it was started after the"
        " crash, or the volume is mounted straight into the pod.",
        RESTART + " fusewatchd learns its next mount while it works.",
        "Nothing: fusewatchd never guesses a source.",
    ),
    Reason.DIRECT_MOUNT: Advice(
        "The FUSE server mounts straight into the pod, so there is no source.",
        "Restart the pod, or the container that serves the volume:"
        " `kubectl -n {namespace} delete pod {pod}`.",
        "Nothing. subPaths and containers follow when the volume is mounted again.",
    ),
    Reason.BLOCK_DEVICE: Advice(
        "The mount is the file system of a disk (fuseblk). While a pod holds the dead one, the"
        " kernel mounts that again instead of a new one.",
        "End every pod that uses it, unmount it everywhere, and mount it again. Or attach the disk"
        " again, so that it gets another device number.",
        "fusewatchd replaces it once its driver mounts the disk where only this volume can be.",
    ),
    Reason.AMBIGUOUS_SOURCE: Advice(
        "Several mounts could be its source. The wrong one would show the pod the data of another"
        " volume.",
        "The source lines name them. Unmount those that are not needed, such as a second runtime of"
        " a dataset, or restart the pod. With kubelet.url the pod's namespace may decide.",
        "fusewatchd replaces it when only one is possible.",
    ),
    Reason.SOURCE_MISSING: Advice(
        "Its source is not mounted. The driver has not started a new FUSE server there, or"
        " mounts it somewhere else now.",
        "Check the driver: its pod or unit, and its log. If a dead mount at the source keeps the"
        " server from starting, run `umount -l {source}`. drivers.on_stale can restart a server.",
        WHEN_BACK,
    ),
    Reason.SOURCE_UNPROVEN: Advice(
        "A new file system is mounted at its source and does not serve its root yet.",
        "See the evidence for what it answers. If this lasts, check the log of the new FUSE server,"
        " and whether root may use the mount (allow_other).",
        "fusewatchd replaces it as soon as the new source answers.",
    ),
    Reason.LAYERS_UNPROVEN: Advice(
        "The mount covers another one at the same path, which may be dead as well and has not"
        " answered yet.",
        IT_PASSES,
        "fusewatchd replaces it with the answer, or after a second without one.",
    ),
    Reason.SOURCE_DEAD: Advice(
        "The dead mount of the old FUSE server is still at its source, for longer than a restart"
        " takes. Servers on libfuse refuse to start there.",
        "Run `umount -l {source}`, or set dead_sources.detach: true to have fusewatchd do it"
        " once no process serves that mount.",
        WHEN_BACK,
    ),
    Reason.SERVER_ALIVE: Advice(
        "The file system is dead, but a process that may be its server still runs. Its connection"
        " was cut: by `umount -f` of a mount, by an abort, or by the kernel's request timeout"
        " (fs.fuse.default_request_timeout).",
        "End that process if it is not needed. The connection line names it.",
        "fusewatchd looks for the process again every look_seconds.",
    ),
    Reason.AWAITS_ACTION: Advice(
        "The FUSE server is gone, and a rule in drivers.on_stale restarts it.",
        "`fusewatchd status` shows how the last attempt ended and when the next one is due.",
        "fusewatchd replaces it when the server is back.",
    ),
    Reason.ARGUMENT: Advice(
        "The rule in drivers.on_stale needs a value that this volume does not have, or that has"
        " characters which are not passed on.",
        "Check the fields of the rule: only CSI volumes have a {handle}, and only servers that"
        " mount outside the pod have a source.",
        "fusewatchd runs nothing for it until that changes.",
    ),
    Reason.SOURCE_CHANGED: Advice(
        "The source was replaced again just before the replacement.",
        IT_PASSES,
        "fusewatchd tries again with what is mounted there now.",
    ),
    Reason.SOURCE_TYPE: Advice(
        "Another type of file system is mounted at its source now.",
        "See the source line. If the driver was changed on purpose, restart the pod:"
        " `kubectl -n {namespace} delete pod {pod}`.",
        "fusewatchd replaces it when a file system of the old type is mounted there.",
    ),
    Reason.SOURCE_ROOT: Advice(
        "Another directory of a file system is mounted at its source now.",
        "See the source line. If the driver was changed on purpose, restart the pod:"
        " `kubectl -n {namespace} delete pod {pod}`.",
        "fusewatchd replaces it when the old directory is mounted there.",
    ),
    Reason.SOURCE_OWNER: Advice(
        "The server at its source belongs to another user than before, and users other than root"
        " can mount there.",
        "The last attempt names the directory. If the server is the right one, make every directory"
        " above {source} owned by root with mode 0755, and mount it again.",
        "fusewatchd replaces it when root's server is mounted there, or when only root can mount"
        " there.",
    ),
    Reason.HOST_BIND_STALE: Advice(
        "A container gets its mount from its pod's mount on the host, and that one is broken.",
        "Explain the pod: `fusewatchd explain {namespace}/{pod}`. The reason on the host counts.",
        "fusewatchd replaces it right after the mount on the host.",
    ),
    Reason.UNMOUNTED_ON_HOST: Advice(
        "The volume was unmounted on the host, by its driver, the kubelet or `umount`. The"
        " container still has its mount, and the host has nothing left to repair it from.",
        RESTART + " Or let the driver publish the volume again.",
        "fusewatchd replaces it when the volume is published again at the same place.",
    ),
    Reason.SUBPATH_MISSING: Advice(
        "The mount shows a directory or file of the volume (subPath) that is not in the new file"
        " system.",
        "Create it in the volume, as a plain directory or file, or restart the pod: the kubelet"
        " creates missing directories, fusewatchd never does.",
        RETRIES,
    ),
    Reason.SUBPATH_UNSAFE: Advice(
        "The path of its subPath leads through a symlink or into another file system. A pod could"
        " use that to reach the node.",
        "Remove the symlink inside the volume, or restart the pod.",
        RETRIES + " It never follows a symlink.",
    ),
    Reason.PATH_DEAD: Advice(
        "A file system on the path to the mount is dead; the last attempt names it. It may be the"
        " container's root, if the server of its lazily pulled image is gone.",
        RESTART + " If it happens again, check the snapshotter of the container runtime.",
        RETRIES,
    ),
    Reason.TYPE_MISMATCH: Advice(
        "The mount shows a file where the new file system has a directory, or the other way round.",
        "Restore what was there in the volume, or restart the pod.",
        RETRIES,
    ),
    Reason.DIRECTORY_DROPPED: Advice(
        "The kernel has dropped this directory of the dead file system after a failed look-up, and"
        " mounts nothing on it any more. This happens before Linux 6.5.",
        RESTART,
        "fusewatchd tries again when the node changes, but only a new mount of the kubelet helps.",
    ),
    Reason.CHILD_MOUNT: Advice(
        "Another volume is mounted inside this one and cannot be carried over. Its directory is not"
        " in the new file system, or the host cannot see what it shows.",
        "Create the missing directory in the volume, or restart the pod.",
        "fusewatchd tries again when the node changes. It never leaves a pod without its inner"
        " volume.",
    ),
    Reason.IDMAP: Advice(
        "The pod has a user namespace (hostUsers: false), and the new file system does not allow"
        " the id mapping that the old mount had.",
        "Use a FUSE server and kernel that allow id-mapped mounts, or restart the pod.",
        RETRIES + " Files never get other owners.",
    ),
    Reason.LOCKED: Advice(
        "The mount is locked together with others in a user namespace and cannot be replaced"
        " alone.",
        RESTART,
        RETRIES,
    ),
    Reason.POD_ENDING: Advice(
        "The pod is being deleted. The kubelet unmounts its volumes.",
        "Nothing. If the pod stays Terminating, check the kubelet's log for what is busy.",
        "fusewatchd never replaces it.",
    ),
    Reason.POD_UNKNOWN: Advice(
        "The kubelet does not list the pod.",
        "Check the kubelet's log for why its mounts are still there. With"
        " cleanup.detach_orphans: true fusewatchd detaches dead ones after a grace period.",
        "fusewatchd does not replace it, unless the kubelet lists the pod again.",
    ),
    Reason.REPORT_ONLY: Advice(
        "recovery.mode is report: fusewatchd logs what it would do and changes nothing.",
        "Set recovery.mode: recover, then run `systemctl reload fusewatchd`.",
        "fusewatchd replaces it as soon as the mode allows it.",
    ),
    Reason.PAUSED: Advice(
        "An administrator has paused fusewatchd: it changes nothing on this node for a while.",
        "Run `fusewatchd resume`, or wait: `fusewatchd status` says until when it is paused.",
        "fusewatchd replaces it as soon as the pause ends.",
    ),
    Reason.DISABLED: Advice(
        "The configuration or an annotation of the pod excludes it from recovery; the evidence"
        " names which one.",
        "Remove the exclusion. `systemctl reload fusewatchd` loads a changed configuration; an"
        " annotation is read with the next pod list.",
        "fusewatchd replaces it as soon as it is no longer excluded.",
    ),
    Reason.OWNER_UNKNOWN: Advice(
        "The configuration excludes namespaces, and the kubelet has not said yet in which one this"
        " pod is.",
        "Check that fusewatchd reaches the kubelet: `fusewatchd doctor`.",
        "fusewatchd replaces it as soon as the pod's namespace is known and not excluded.",
    ),
    Reason.GRACE: Advice(
        "Its pod was deleted, but not long enough ago to detach its dead mounts.",
        IT_PASSES,
        "fusewatchd detaches it after cleanup.grace_seconds, if the kubelet has not done so.",
    ),
    Reason.BACK_OFF: Advice(
        "The last attempt failed or did not last, so fusewatchd waits before the next one.",
        "See the last attempt for the error.",
        "fusewatchd tries again after the pause. Pauses grow to recovery.back_off_max_seconds.",
    ),
    Reason.DEEP_STACK: Advice(
        "More mounts are stacked on it than fusewatchd can remove in one attempt.",
        "Find out what mounts there again and again: `findmnt {mount}`, the driver's log.",
        "fusewatchd resumes with the next attempt.",
    ),
    Reason.TABLE_FULL: Advice(
        "The node's mount table is near its limit (recovery.max_table_entries, or 90 % of"
        " fs.mount-max), and no replacement may fill it.",
        "Find out what makes so many mounts (`findmnt`), or raise fs.mount-max.",
        "fusewatchd replaces it as soon as the table has room.",
    ),
    Reason.BUDGET: Advice(
        "The node's rate limit for replacements is used up (recovery.budget_per_second and"
        " budget_burst).",
        "Find out what makes mounts stale again and again: `fusewatchd status`, the log.",
        "fusewatchd resumes as the limit allows, with those that waited longest.",
    ),
    Reason.QUOTA: Advice(
        "The pod has used up its quota of mounts, workers or replacements. Other pods do not wait"
        " for it.",
        "`fusewatchd status` names what the pod has too many of (`Above its quota`).",
        "fusewatchd resumes as soon as the pod is within its quota.",
    ),
    Reason.FORBIDDEN: Advice(
        "The worker that mounts refused the order. This is a defect of fusewatchd.",
        "Please report it with the log: `journalctl -u fusewatchd`. A restart of the pod helps.",
        RETRIES,
    ),
    Reason.SOURCE_FLAPPING: Advice(
        "Its source is flapping: new mounts of it died before they could be used.",
        "Check the log of the FUSE server for why it crashes right after its start.",
        "fusewatchd replaces it when the source has stayed mounted for some seconds.",
    ),
    Reason.NAMESPACE_GONE: Advice(
        "The container ended before its mount was replaced.",
        NOTHING,
        "A new container gets a new mount from the host.",
    ),
    Reason.ON_DISK: Advice(
        "The container has a directory of the node in the place of its volume, and may be writing"
        " to it.",
        "Save what was written there (the line `directory`). Then restart the pod, which gets the"
        " volume that is mounted now: `kubectl -n {namespace} delete pod {pod}`."
        " With recovery.on_disk: replace fusewatchd mounts the volume over the directory.",
        "fusewatchd watches it. What was written stays where it is.",
    ),
    Reason.VANISHED: Advice(
        "Another program unmounted or replaced it.",
        "If the pod runs without its volume, find out what unmounted it, and restart the pod.",
        "fusewatchd never mounts where nothing is mounted.",
    ),
    Reason.RACED: Advice(
        "Another program changed the same mount at the same moment.",
        "If it happens again and again, find out which other tool mounts there.",
        "fusewatchd tries again after a short pause.",
    ),
    Reason.TIMED_OUT: Advice(
        "The replacement did not end in time, because a file system that it needs does not answer.",
        "Check for a hung file system at the source, or in the container above the mount.",
        "The worker was replaced. fusewatchd tries again after a pause.",
    ),
    Reason.NOT_VERIFIED: Advice(
        "After the replacement, the kernel shows another mount than expected.",
        "See the last attempt for the difference, and find out which other tool mounts there.",
        "fusewatchd tries again after a pause.",
    ),
    Reason.SYSTEM_CALL: Advice(
        "A system call failed; the last attempt names it and the error.",
        "ENOSPC means fs.mount-max. EPERM and EACCES mean a security module or missing"
        " capabilities. EINVAL means a mount that the kernel does not let go.",
        RETRIES,
    ),
    Reason.NAMESPACE_LIMIT: Advice(
        "The node has as many mount namespaces as it may have (user.max_mnt_namespaces), and the"
        " kernel counts a new mount as one until it is attached.",
        "Raise the limit: `sysctl -w user.max_mnt_namespaces=65536`. Or find out what makes so"
        " many: `lsns -t mnt`.",
        RETRIES,
    ),
    Reason.ALREADY_LIVE: Advice(
        "The mount already showed a live file system when fusewatchd was about to replace it.",
        NOTHING,
        "fusewatchd checks it again.",
    ),
    Reason.UNCONFIRMED: Advice(
        "fusewatchd is about to abort the connection. It waits for hung.abort_confirmations, or for"
        " another abort to end.",
        IT_PASSES,
        "fusewatchd aborts it when it is confirmed and no other abort is running.",
    ),
    Reason.ANSWERING: Advice(
        "The connection answered a request just before it was to be aborted.",
        "Nothing, or check why the FUSE server is that slow.",
        "fusewatchd starts to confirm again.",
    ),
    Reason.NO_FUSECTL: Advice(
        "The FUSE control file system cannot be used. fusewatchd can neither prove that a"
        " connection hangs nor abort it.",
        "Mount it: `mount -t fusectl fusectl /sys/fs/fuse/connections`.",
        "fusewatchd leaves the connection alone until then.",
    ),
}
