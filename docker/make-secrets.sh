#!/bin/sh
# Make the secrets that compose.yaml reads, in docker/secrets/: random ones, each of them once.
# The directory is closed to other users; the files are readable, because the containers' users are
# not this one.
set -eu
umask 022
cd "$(dirname "$0")"
mkdir -p secrets
chmod 700 secrets

random() {
    od -An -N24 -tx1 /dev/urandom | tr -d ' \n'
}

make() {
    if [ ! -e "secrets/$1" ]; then
        printf '%s' "$2" > "secrets/$1.partial"
        mv "secrets/$1.partial" "secrets/$1"
        echo "made docker/secrets/$1"
    fi
}

make postgres_password "$(random)"
make prefect_auth "trtforge:$(random)"
make s3_secret_access_key "$(random)"
make hf_token ""
# Always from the key, so that the two cannot differ.
sed "s/SECRET/$(cat secrets/s3_secret_access_key)/" secrets/s3_identities.json.example \
    > secrets/s3_identities.json.partial
mv secrets/s3_identities.json.partial secrets/s3_identities.json
