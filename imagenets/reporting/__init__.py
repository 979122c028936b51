"""Output for people: text tables, HTML reports, charts, overlays, confusions, single images."""
