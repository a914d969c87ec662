"""dvc.py FOLDER: the digest by which DVC knows a folder, as dvc-data computes it."""

import sys

from dvc_data.hashfile.build import build
from dvc_data.hashfile.db import HashFileDB
from dvc_objects.fs.local import LocalFileSystem
from dvc_objects.fs.memory import MemoryFileSystem

store = HashFileDB(MemoryFileSystem(), "/store")
_, _, found = build(store, sys.argv[1], LocalFileSystem(), "md5", dry_run=True)
print(f"{found.hash_info.name}:{found.hash_info.value}")
