#!/bin/sh
# Make the certificates, once, and give each part its own and no other; the CA's key stays here.
set -eu
umask 077

pki=${1:-/etc/cachesvc/pki} service=${2:-/etc/cachesvc/service} proxy=${3:-/etc/cachesvc/proxy}
if ! [ -e "$pki/admin.key" ]; then
    cachesvc certs --out "$pki" --name service --force > /dev/null
fi
cp "$pki/ca.pem" "$pki/service.pem" "$pki/service.key" "$service/"
cp "$pki/ca.pem" "$pki/client.pem" "$pki/client.key" "$proxy/"
