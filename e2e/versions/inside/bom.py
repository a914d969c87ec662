"""bom.py FILE VERSION: validates a CycloneDX document against the schema that cyclonedx-python-lib ships."""

import sys

from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

version = SchemaVersion.from_version(sys.argv[2])
error = JsonStrictValidator(version).validate_str(open(sys.argv[1], encoding="utf-8").read())
if error:
    sys.exit(f"not valid: {error}")
