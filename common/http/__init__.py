"""HTTP: what the REST APIs of edge and cloud share."""
