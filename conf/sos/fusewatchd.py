"""Plug-in of sos (https://github.com/sosreport/sos): copy it to sos/report/plugins/."""

from sos.report.plugins import DebianPlugin, Plugin, RedHatPlugin, UbuntuPlugin


class Fusewatchd(Plugin, RedHatPlugin, DebianPlugin, UbuntuPlugin):
    """Collects what ``fusewatchd support-bundle`` does: secrets are left out there."""

    short_desc = "fusewatchd, which recovers FUSE volumes of Kubernetes pods"
    plugin_name = "fusewatchd"
    profiles = ("container", "storage")
    packages = ("fusewatchd",)
    commands = ("fusewatchd",)
    services = ("fusewatchd",)

    def setup(self):
        """Call the command, and take the unit as it is configured."""
        bundle = self.get_cmd_output_path(make=True) + "/support-bundle.tar.gz"
        self.add_cmd_output(
            [
                f"fusewatchd support-bundle --output {bundle}",
                "fusewatchd version --json",
                "systemctl cat fusewatchd.service",
            ],
            timeout=120,
        )
