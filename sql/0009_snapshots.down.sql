-- Lock: none on anything else.

drop table postrider.snapshots;
