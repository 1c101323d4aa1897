"""Where a run goes on from: its newest checkpoint or an older one, with other settings, or back again by itself."""
