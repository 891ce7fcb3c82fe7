#!/bin/sh
# Make the secrets of compose.yaml, once: sh deploy/compose/secrets.sh [FOLDER]
set -eu

folder=${1:-$(dirname "$0")/secrets}
if [ -e "$folder/scope_secret" ]; then
    echo "$folder: has secrets already; they stay" >&2
    exit 0
fi

random() { od -An -N32 -tx1 /dev/urandom | tr -d ' \n'; }

# The folder keeps others out. The files are readable to all, since a container sees them with the
# owner and mode they have here, and runs as another user.
mkdir -p "$folder"
chmod 0700 "$folder"
umask 022
password=$(random)
echo '*' > "$folder/.gitignore"
echo "$password" > "$folder/postgres_password"
echo "postgresql://cachesvc:$password@postgres:5432/cachesvc" > "$folder/database_url"
random > "$folder/scope_secret"
echo "made $folder" >&2
