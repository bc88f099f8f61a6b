"""What goes wrong between two machines, and on each: cuts, damage, kills, floods, full disks."""
