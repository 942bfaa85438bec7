# shellcheck shell=bash
# Writes OCI image layouts (image-spec v1.1) by hand, so that every byte, and with it every digest, is the same in each build.
# Sourced after guest-image/cache.sh. A descriptor is one line of JSON.

# layout_begin LAYOUT
layout_begin() {
  mkdir -p "$1/blobs/sha256"
  printf '{"imageLayoutVersion":"1.0.0"}\n' >"$1/oci-layout"
}

# add_blob LAYOUT FILE MEDIA_TYPE: move the file into the layout and print its descriptor
add_blob() {
  local layout=$1 file=$2 type=$3 digest size
  digest=$(sha256sum <"$file" | cut -d' ' -f1)
  size=$(stat -c %s "$file")
  mv "$file" "$layout/blobs/sha256/$digest"
  jq -nc --arg type "$type" --arg digest "sha256:$digest" --argjson size "$size" '{mediaType: $type, digest: $digest, size: $size}'
}

# layer_tar TREE: the tree as a tar stream, in name order and without the build's times
layer_tar() {
  tar -C "$1" --create --format=pax --pax-option=exthdr.name=%d/pax/%f,delete=atime,delete=ctime --sort=name \
    --numeric-owner --mtime=@1767225600 --xattrs --xattrs-include='*' .
}

# add_layer LAYOUT TREE gzip|zstd|tar: print the layer's descriptor with its diff id beside it
add_layer() {
  local layout=$1 tree=$2 format=$3 file descriptor diff type
  file=$(mktemp -p "$layout")
  diff=$(layer_tar "$tree" | sha256sum | cut -d' ' -f1)
  type=application/vnd.oci.image.layer.v1.tar
  case $format in
  gzip) layer_tar "$tree" | gzip -n >"$file" ;;
  zstd) layer_tar "$tree" | zstd -q >"$file" ;;
  tar) layer_tar "$tree" >"$file" ;;
  esac
  [[ $format == tar ]] || type+=+$format
  descriptor=$(add_blob "$layout" "$file" "$type")
  jq -nc --argjson descriptor "$descriptor" --arg diff "sha256:$diff" '{descriptor: $descriptor, diff: $diff}'
}

# add_manifest LAYOUT ARCHITECTURE CONFIG LAYER...: CONFIG is the JSON object of the image's "config"; prints the manifest's descriptor
add_manifest() {
  local layout=$1 architecture=$2 config=$3 file layers config_descriptor
  shift 3
  layers=$(printf '%s\n' "$@" | jq -sc .)
  file=$(mktemp -p "$layout")
  jq -nc --arg architecture "$architecture" --argjson config "$config" --argjson layers "$layers" '{
      created: "2026-01-01T00:00:00Z", architecture: $architecture, os: "linux", config: $config,
      rootfs: {type: "layers", diff_ids: [$layers[].diff]},
      history: [$layers[] | {created: "2026-01-01T00:00:00Z", created_by: "tests/images"}]
    }' >"$file"
  config_descriptor=$(add_blob "$layout" "$file" application/vnd.oci.image.config.v1+json)
  file=$(mktemp -p "$layout")
  jq -nc --argjson config "$config_descriptor" --argjson layers "$layers" '{
      schemaVersion: 2, mediaType: "application/vnd.oci.image.manifest.v1+json", config: $config, layers: [$layers[].descriptor]
    }' >"$file"
  add_blob "$layout" "$file" application/vnd.oci.image.manifest.v1+json |
    jq -c --arg architecture "$architecture" '. + {platform: {architecture: $architecture, os: "linux"}}'
}

# add_index LAYOUT MANIFEST...: an index of one image for several architectures; prints its descriptor
add_index() {
  local layout=$1 file
  shift
  file=$(mktemp -p "$layout")
  printf '%s\n' "$@" |
    jq -sc '{schemaVersion: 2, mediaType: "application/vnd.oci.image.index.v1+json", manifests: .}' >"$file"
  add_blob "$layout" "$file" application/vnd.oci.image.index.v1+json
}

# layout_end LAYOUT DESCRIPTOR: the descriptor becomes the layout's `latest`
layout_end() {
  jq -c '{schemaVersion: 2, manifests: [. + {annotations: {"org.opencontainers.image.ref.name": "latest"}}]}' <<<"$2" >"$1/index.json"
}
