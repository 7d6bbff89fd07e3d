"""Identity from a directory: an entry is found or named by a template, and the password is tried by binding as it."""
