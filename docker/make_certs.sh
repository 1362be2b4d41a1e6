#!/bin/sh
# A certificate authority and a certificate for each end, for mutual TLS between edge and cloud.
#
#     docker/make_certs.sh FOLDER [NAME...]     names and addresses that the cloud is reached by
#     EDGES="door hall" docker/make_certs.sh FOLDER [NAME...]     a certificate for each of these edges
#
# An edge's name is the one in its certificate, so each needs its own; without EDGES there is "edge".
# Keeps what is there. Fine for one's own two machines; a company has an authority of its own.
set -eu
folder=$1
shift
[ $# -gt 0 ] || set -- cloud localhost 127.0.0.1
mkdir -p "$folder"
cd "$folder"
if [ -f ca.pem ] && [ ! -f ca.key ]; then
    echo "kept the certificates in $folder"
    exit 0
fi
umask 077
days=825

names=
for name in "$@"; do
    case $name in
        *[!0-9.]*) names="$names,DNS:$name" ;;
        *) names="$names,IP:$name" ;;
    esac
done

key() { openssl ecparam -name prime256v1 -genkey -noout -out "$1.key"; }

sign() { # FILE NAME EXTENSIONS
    key "$1"
    openssl req -new -key "$1.key" -subj "/CN=$2" -out "$1.csr"
    printf 'basicConstraints=CA:FALSE\n%s\n' "$3" > "$1.ext"
    openssl x509 -req -sha256 -days $days -in "$1.csr" -CA ca.pem -CAkey ca.key -CAcreateserial \
        -extfile "$1.ext" -out "$1.part" 2> /dev/null
    mv "$1.part" "$1.pem"
    rm "$1.csr" "$1.ext"
}

key ca
openssl req -new -x509 -sha256 -days $days -key ca.key -subj "/CN=splitpoint authority" -out ca.pem
sign cloud "splitpoint cloud" "extendedKeyUsage=serverAuth
subjectAltName=${names#,}"
for edge in ${EDGES:-edge}; do
    sign "$edge" "$edge" "extendedKeyUsage=clientAuth"
done
# With it anyone could make more: it is not needed again.
rm ca.key ca.srl
chmod 644 ./*.pem
echo "made the certificates in $folder"
