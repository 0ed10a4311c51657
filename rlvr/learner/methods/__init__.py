"""What rides along with the policy's update, each method a hook in one file."""
