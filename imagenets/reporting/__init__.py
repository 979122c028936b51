"""What people look at: text tables, HTML reports, charts, overlays, confusions, single images."""
