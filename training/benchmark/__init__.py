"""The paper's five target tasks on pre-trained and fresh networks: every table, by command."""
