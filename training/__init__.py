"""From raw data sets to publishable weights, one module a stage; see README.md here."""
