#!/bin/sh
# Make signed apt and dnf repositories of one's own from built packages:
#
#     packaging/repository.sh DIST KEY OUTPUT
#
# DIST has the deb and the rpm (make release).  KEY is the id of a GnuPG key that signs without a
# question, as gpg-agent or GNUPGHOME has it.  OUTPUT is then served as files by any web server.  Run
# it again with newer packages: they are added.  Needs reprepro, createrepo_c, rpm and gpg.
set -eu
dist=$1 key=$2 output=$3
mkdir -p "$output/apt/conf" "$output/rpm"

# Both package managers get the key as a file, by which they trust this repository and no other.
gpg --batch --yes --export "$key" > "$output/fusewatchd.gpg"
gpg --batch --yes --armor --export "$key" > "$output/fusewatchd.asc"

cat > "$output/apt/conf/distributions" <<END
Origin: fusewatchd
Label: fusewatchd
Codename: stable
Architectures: amd64 arm64
Components: main
SignWith: $key
END
for deb in "$dist"/*.deb; do
    reprepro --silent --basedir "$output/apt" includedeb stable "$deb"
done
cat > "$output/fusewatchd.sources" <<END
Types: deb
URIs: URL/apt
Suites: stable
Components: main
Signed-By: /etc/apt/keyrings/fusewatchd.gpg
END

for rpm in "$dist"/*.rpm; do
    cp "$rpm" "$output/rpm/"
    rpmsign --define "_gpg_name $key" --define "__gpg $(command -v gpg)" \
        --addsign "$output/rpm/${rpm##*/}" > /dev/null
done
createrepo_c --quiet --update "$output/rpm"
gpg --batch --yes --local-user "$key" --armor --detach-sign "$output/rpm/repodata/repomd.xml"
cat > "$output/fusewatchd.repo" <<END
[fusewatchd]
name=fusewatchd
baseurl=URL/rpm
gpgcheck=1
repo_gpgcheck=1
gpgkey=URL/fusewatchd.asc
END
