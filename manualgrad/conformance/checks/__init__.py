"""What `check_backward` tries, by kind: each check takes a `Case`, returns what it has shown, and raises `Failed`, `NotSupported`
or `NotApplicable` otherwise. A new check goes into the file of its kind, and by name into `check_backward.CHECKS`."""
