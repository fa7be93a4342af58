"""A user's data: found on disk, checked, split by subject, and prepared on the model grid."""
