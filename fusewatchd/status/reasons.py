"""What to say of each reason to somebody who asks why a mount is left as it is."""

from __future__ import annotations

from collections.abc import Mapping

from fusewatchd.model.verdicts import Reason
from fusewatchd.status.advice import BY_ITSELF, NOTHING, Advice

REASONS: Mapping[Reason, Advice] = {
    Reason.NONE: Advice(
        "Nothing holds it back.",
        NOTHING,
        "It is replaced as soon as it is stale and its source answers.",
    ),
    Reason.NO_SOURCE: Advice(
        "Nothing says where it came from: fusewatchd never saw its file system mounted outside"
        " the pods directory, and no driver that it knows has this layout. It was started after"
        " the old source mount was gone, or the volume is mounted straight into the pod.",
        "Restart the pod; its next mount is learned while it works. With fusewatchd running"
        " before the crash this does not happen, unless there is no source to bind from.",
        "Nothing: a source is never guessed.",
    ),
    Reason.DIRECT_MOUNT: Advice(
        "Its FUSE server mounts straight into the pod, so there is no source to bind from.",
        "Let whoever mounted it do so again: restart the pod, or the container that serves it.",
        "Nothing by itself; subPath binds and containers follow when it is mounted again.",
    ),
    Reason.BLOCK_DEVICE: Advice(
        "It is the file system of a disk (fuseblk). As long as a bind holds the dead one the kernel"
        " mounts that again, dead as it is, and no new one.",
        "End every pod that uses it, unmount it everywhere, and mount it anew; or attach the disk"
        " anew, so that it gets another number.",
        "It is replaced once another disk is mounted where its driver keeps just this volume.",
    ),
    Reason.AMBIGUOUS_SOURCE: Advice(
        "Several mounts could be its source, and to take the wrong one would show the pod"
        " somebody else's data.",
        "See the source line for which ones; unmount those that are not wanted (two runtimes of"
        " one dataset, a second dataset with the same volume name), or restart the pod. With"
        " kubelet.url configured the pod's namespace may decide.",
        "It is replaced when only one is possible.",
    ),
    Reason.SOURCE_MISSING: Advice(
        "Its source was not mounted again: the driver has not started a new FUSE server there, or"
        " mounts it somewhere else now.",
        "Look at the driver: its pod or unit, its log. A dead mount that is still at the source's"
        " path can keep a FUSE server from starting; then 'umount -l' of the source's path helps."
        " drivers.on_stale can start a server that nobody else starts.",
        "It is replaced within milliseconds once a new file system is mounted at the source.",
    ),
    Reason.SOURCE_UNPROVEN: Advice(
        "A new file system is mounted at its source, and has not shown yet that it serves its"
        " root.",
        "See the evidence for what it answers. If this lasts, the new FUSE server is not ready: see"
        " its log, and whether root may use the mount (allow_other).",
        "It is replaced as soon as its new source answers well.",
    ),
    Reason.LAYERS_UNPROVEN: Advice(
        "It covers another mount at the same path, which may be as dead and has not answered a"
        " question yet.",
        BY_ITSELF,
        "It is replaced with the answer, and after a second without one.",
    ),
    Reason.SOURCE_DEAD: Advice(
        "The mount of the old FUSE server is still at its source and dead, for longer than a"
        " restart takes. Servers on libfuse refuse to start on such a mount.",
        "'umount -l' of the source's path, or dead_sources.detach: true, which does that when it is"
        " proven that nobody serves it.",
        "It is replaced within milliseconds once a new file system is mounted at the source.",
    ),
    Reason.SERVER_ALIVE: Advice(
        "A process that may be the server of this dead file system still runs, so nothing is done"
        " in its stead. 'umount -f' of any bind cuts a connection while its server lives, and so"
        " does an abort: by somebody, or by the kernel (fs.fuse.default_request_timeout).",
        "End that process if it is of no more use: the connection line, or 'status --json', names"
        " it.",
        "It is looked for again every look_seconds.",
    ),
    Reason.AWAITS_ACTION: Advice(
        "Its server is gone, and there is a rule in drivers.on_stale for starting it again.",
        "See 'on_stale' in 'status': how the last attempt ended and when the next one is due.",
        "It is replaced, or found healthy, when the server is back.",
    ),
    Reason.ARGUMENT: Advice(
        "The rule in drivers.on_stale needs a value that is not known for this volume, or that has"
        " characters that are not passed on.",
        "See which fields the rule uses: a volumeHandle is known for CSI volumes only, a source"
        " only where the server mounts outside the pod.",
        "Nothing is run for it until that changes.",
    ),
    Reason.SOURCE_CHANGED: Advice(
        "The source was replaced once more between the look and the replacement.",
        BY_ITSELF,
        "It is tried again with what is mounted there now.",
    ),
    Reason.SOURCE_TYPE: Advice(
        "What is mounted at its source now is another kind of file system.",
        "See the source line for what is there. If the driver was changed on purpose, restart the"
        " pod.",
        "It is replaced when a file system of the old kind is mounted there.",
    ),
    Reason.SOURCE_ROOT: Advice(
        "What is mounted at its source now shows another directory of its file system.",
        "See the source line for what is there. If the driver was changed on purpose, restart the"
        " pod.",
        "It is replaced when the directory that it had is mounted there.",
    ),
    Reason.SOURCE_OWNER: Advice(
        "The server at its source is another user's than before, and it cannot be told that root"
        " wants it there: others than root can write a directory above it, or it covers another"
        " mount.",
        "See the last attempt for the directory. If the server is the right one, make every"
        " directory above the source root's with mode 0755, and mount it again.",
        "It is replaced when root's server is mounted there, or when nobody else can mount there.",
    ),
    Reason.HOST_BIND_STALE: Advice(
        "A container gets its mount from its pod's bind on the host, and that one is not well.",
        "Explain the pod's bind on the host: its reason is the one that counts.",
        "It is replaced right after the bind on the host.",
    ),
    Reason.UNMOUNTED_ON_HOST: Advice(
        "The volume was unmounted on the host, by its driver, the kubelet or 'umount'. The"
        " container still has its mount, and there is nothing left to bind from.",
        "Restart the pod, or let the driver publish the volume again.",
        "It is replaced when the volume is published again at the same place.",
    ),
    Reason.SUBPATH_MISSING: Advice(
        "It shows a directory or file of the volume that is not in the new file system.",
        "Create it again in the volume, as a plain directory or file, or restart the pod: the"
        " kubelet makes missing directories, fusewatchd never does.",
        "It is tried again, with longer and longer pauses.",
    ),
    Reason.SUBPATH_UNSAFE: Advice(
        "The way to the directory that it shows leads through a symbolic link or into another"
        " file system, which a pod could use to reach the node.",
        "Look at the path inside the volume, take the link away, or restart the pod.",
        "It is tried again, with longer and longer pauses; a link is never followed.",
    ),
    Reason.PATH_DEAD: Advice(
        "Its path leads over a file system that is dead: the last attempt names it. The root of a"
        " container is, when the server of its lazily pulled image is gone. The pod's bind on the"
        " host may be well.",
        "Restart the pod. If it happens again, look at the snapshotter of the container runtime.",
        "It is tried again, with longer and longer pauses.",
    ),
    Reason.TYPE_MISMATCH: Advice(
        "It shows a file where the new file system has a directory, or the other way round.",
        "Put back into the volume what was there, or restart the pod.",
        "It is tried again, with longer and longer pauses.",
    ),
    Reason.DIRECTORY_DROPPED: Advice(
        "The kernel has dropped this directory of the dead file system, as it does when a look-up"
        " fails there: nothing can be mounted on top of it any more.",
        "Restart the pod. On Linux 6.5 and newer mounts are replaced from beneath, and it does not"
        " happen.",
        "It is tried again when the node changes, but only a new bind of the kubelet helps.",
    ),
    Reason.CHILD_MOUNT: Advice(
        "Another volume is mounted inside this one and cannot be carried over: its place is not"
        " in the new file system, or what it shows cannot be seen from the host.",
        "Create the missing directory in the volume, or restart the pod.",
        "It is tried again when the node changes; a pod is never left without its inner volume.",
    ),
    Reason.IDMAP: Advice(
        "The pod has a user namespace of its own (hostUsers: false), and the new file system does"
        " not allow the id mapping that the old mount had.",
        "Use a FUSE server and kernel that allow id-mapped mounts, or restart the pod.",
        "It is tried again, with longer and longer pauses; files never get other owners.",
    ),
    Reason.LOCKED: Advice(
        "The mount is locked together with others in a user namespace and cannot be replaced"
        " alone.",
        "Restart the pod.",
        "It is tried again, with longer and longer pauses.",
    ),
    Reason.POD_ENDING: Advice(
        "The pod is being deleted: its mounts belong to the kubelet, which takes them away.",
        "Nothing; if the pod stays in Terminating, see the kubelet's log for what is busy.",
        "It is never replaced.",
    ),
    Reason.POD_UNKNOWN: Advice(
        "The kubelet does not list the pod.",
        "See in the kubelet's log why its mounts are still there; with cleanup.detach_orphans:"
        " true dead ones are taken away after a grace.",
        "It is never replaced, unless the kubelet lists the pod again.",
    ),
    Reason.REPORT_ONLY: Advice(
        "recovery.mode is report: fusewatchd says what it would do and does nothing.",
        "Set recovery.mode: recover and reload fusewatchd.",
        "It is replaced as soon as that is allowed.",
    ),
    Reason.PAUSED: Advice(
        "An administrator has paused fusewatchd: it changes nothing on this node for a while.",
        "Run 'fusewatchd resume', or wait: 'fusewatchd status' says until when it is paused.",
        "It is replaced as soon as the pause ends.",
    ),
    Reason.DISABLED: Advice(
        "Recovery is switched off for it, by the configuration or by the pod's annotation: the"
        " evidence names the switch.",
        "Take the switch away: the configuration is read again by 'systemctl reload fusewatchd',"
        " an annotation with the next pod list.",
        "It is replaced as soon as it is switched on.",
    ),
    Reason.OWNER_UNKNOWN: Advice(
        "Namespaces are excluded by the configuration, and the kubelet has not told yet in which"
        " one this pod is.",
        "See that fusewatchd reaches the kubelet: kubelet.url, its token, 'fusewatchd status'.",
        "It is replaced as soon as the pod's namespace is known and not an excluded one.",
    ),
    Reason.GRACE: Advice(
        "Its pod is over, and not for long enough yet to take its dead mounts away.",
        BY_ITSELF,
        "It is taken away after cleanup.grace_seconds, if the kubelet has not done so by then.",
    ),
    Reason.BACK_OFF: Advice(
        "The last attempt did not last, so the next one waits.",
        "See the last attempt for what went wrong.",
        "It is tried again when the pause is over; the pauses grow up to"
        " recovery.back_off_max_seconds.",
    ),
    Reason.DEEP_STACK: Advice(
        "More layers are stacked on the mount that it should show than can be taken off in one"
        " attempt.",
        "Find out who mounts there again and again: 'findmnt', the log of the driver.",
        "The next attempt goes on where this one ended.",
    ),
    Reason.TABLE_FULL: Advice(
        "The mount table of the node is near its limit (recovery.max_table_entries, or 90 % of"
        " fs.mount-max), and no replacement may fill it.",
        "Find out who makes so many mounts ('findmnt | wc -l', stacks of binds of other tools),"
        " or raise fs.mount-max.",
        "It is replaced as soon as the table has room.",
    ),
    Reason.BUDGET: Advice(
        "The node has had more replacements of late than recovery.budget_per_second and"
        " budget_burst allow.",
        "Find out what makes mounts stale again and again: 'fusewatchd status', the log.",
        "It has its turn as soon as the budget allows, those that waited longest first.",
    ),
    Reason.QUOTA: Advice(
        "Its pod has had its share of binds, workers or replacements: more would cost other pods.",
        "See 'refused_owners' in 'fusewatchd status --json': what the pod has too many of.",
        "It has its turn as soon as the pod is within its quota.",
    ),
    Reason.FORBIDDEN: Advice(
        "The worker that mounts refused it: it is no pod's bind, no container, or another pod's.",
        "This is a fault of fusewatchd: please report it with the line of its log. A restart of the"
        " pod helps.",
        "It is tried again, with longer and longer pauses.",
    ),
    Reason.SOURCE_FLAPPING: Advice(
        "Its source comes and goes: mounts of it died before they were of use to anybody.",
        "See in the log of the FUSE server why it crashes right after its start.",
        "It is replaced when the source has stayed mounted for some seconds.",
    ),
    Reason.NAMESPACE_GONE: Advice(
        "The container ended before its mount was replaced.",
        NOTHING,
        "A new container gets a new mount from the bind on the host.",
    ),
    Reason.ON_DISK: Advice(
        "The container has a directory of the node in the place of its volume, and may be writing"
        " to it.",
        "Save what was written there ('directory' above), then restart the container or the pod: a"
        " new container gets the volume that is mounted now.",
        "It is watched; what was written stays where it is.",
    ),
    Reason.VANISHED: Advice(
        "It was unmounted or replaced by somebody else.",
        "If its pod goes on without the volume, find out who unmounted it, and restart the pod.",
        "Nothing is ever mounted where nothing is mounted.",
    ),
    Reason.RACED: Advice(
        "Somebody else changed the same mount at the same moment.",
        "If it happens again and again, see which other tool mounts there.",
        "It is looked at anew and tried again after a short pause.",
    ),
    Reason.TIMED_OUT: Advice(
        "The replacement did not end in time: something that it had to ask does not answer.",
        "Look for a hung file system at the source, or in the container above the mount.",
        "The worker was replaced; it is tried again after a pause.",
    ),
    Reason.NOT_VERIFIED: Advice(
        "What was read back from the kernel is not what should be there.",
        "See the last attempt for the difference, and which other tool mounts there.",
        "It is tried again after a pause.",
    ),
    Reason.SYSTEM_CALL: Advice(
        "A system call failed: the last attempt says which one, and why.",
        "Look the error up: ENOSPC is fs.mount-max, EPERM and EACCES are a security module or"
        " missing capabilities, EINVAL a mount that the kernel does not let go.",
        "It is tried again, with longer and longer pauses.",
    ),
    Reason.NAMESPACE_LIMIT: Advice(
        "The kernel counts a new mount as a mount namespace until it is attached, and the node has"
        " as many of them as it may have: user.max_mnt_namespaces.",
        "Raise it: 'sysctl -w user.max_mnt_namespaces=…', or find out who makes so many: 'lsns -t"
        " mnt'.",
        "It is tried again, with longer and longer pauses.",
    ),
    Reason.ALREADY_LIVE: Advice(
        "When its turn came, it showed a living file system already.",
        NOTHING,
        "It is looked at anew.",
    ),
    Reason.UNCONFIRMED: Advice(
        "The connection is to be aborted and has not stood still for as often as"
        " hung.abort_confirmations, or another one has its turn.",
        BY_ITSELF,
        "It is aborted when it was confirmed often enough and no other abort is under way.",
    ),
    Reason.ANSWERING: Advice(
        "The connection was to be aborted and answered somebody in the last moment.",
        "Nothing, or look why the FUSE server is that slow.",
        "It is confirmed anew from the beginning.",
    ),
    Reason.NO_FUSECTL: Advice(
        "The FUSE control file system cannot be used, so a hung connection can be neither proven"
        " nor aborted.",
        "Mount it: 'mount -t fusectl fusectl /sys/fs/fuse/connections'.",
        "The connection is left alone until then.",
    ),
}
