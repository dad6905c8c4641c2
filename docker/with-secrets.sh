#!/bin/sh
# Entry point of the images: for each TRTFORGE_…_FILE, PREFECT_…_FILE and HF_TOKEN_FILE in the
# environment, put what that file holds into the variable without _FILE, then run the command. The
# value shows up neither in `docker inspect` nor in compose.yaml. An empty file sets nothing.
set -eu
for name in $(env | sed -n 's/^\(TRTFORGE_[A-Z0-9_]*\|PREFECT_[A-Z0-9_]*\|HF_TOKEN\)_FILE=.*/\1/p'); do
    file=$(printenv "${name}_FILE")
    if [ ! -r "$file" ]; then
        echo "${name}_FILE = $file: the file cannot be read. Run docker/make-secrets.sh" >&2
        exit 78
    fi
    value=$(cat "$file")
    unset "${name}_FILE"
    if [ -n "$value" ]; then
        export "$name=$value"
    fi
done
exec "$@"
