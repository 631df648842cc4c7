"""What the kubelet's directory and its pod list tell."""
