//! Compiles the proto files to Rust, without a `protoc` on the machine.

use heck::{ToSnakeCase, ToUpperCamelCase};
use protox::prost_reflect::prost_types::field_descriptor_proto::{Label, Type};
use protox::prost_reflect::prost_types::{FieldDescriptorProto, FileDescriptorProto};
use std::path::PathBuf;
use std::{env, fs};

const AGENT: [&str; 1] = ["proto/agent.proto"];

const CRI: [&str; 2] = ["proto/cri.proto", UNCHANGED];

/// Names what `k8s-cri` has as it is published.
const UNCHANGED: &str = "proto/cri_unchanged.proto";

fn main() {
    for file in AGENT.iter().chain(&CRI) {
        println!("cargo:rerun-if-changed={file}");
    }
    let files = protox::compile(AGENT, ["proto"]).expect("the agent's proto file is valid");
    tonic_prost_build::configure().compile_fds(files).expect("the generated code can be written");
    if env::var_os("CARGO_FEATURE_CRI").is_some() {
        compile_cri();
    }
}

/// Generates the CRI's services and the messages of `cri.proto`; names of the other file become the types of
/// `k8s-cri`.
///
/// Messages are serialised as `k8s-cri` does it, and a missing field is read as its default: documents from
/// before the field was known stay readable.
fn compile_cri() {
    let mut files = protox::compile(CRI, ["proto"]).expect("the proto files of the CRI are valid");
    let is_unchanged = |file: &&mut FileDescriptorProto| UNCHANGED.ends_with(file.name());
    let unchanged = files.file.iter_mut().find(is_unchanged).expect("it was compiled");
    let mut builder = tonic_prost_build::configure()
        .type_attribute(".runtime.v1", "#[derive(serde::Serialize, serde::Deserialize)]")
        .message_attribute(".runtime.v1", "#[serde(default)]")
        .field_attribute(".runtime.v1.KeyValue.value", "#[serde(with = \"environment_value\")]");
    for name in names(unchanged) {
        let of_crate = format!("::k8s_cri::v1::{}", name.to_upper_camel_case());
        builder = builder.extern_path(format!(".runtime.v1.{name}"), of_crate);
    }
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it"));
    fs::write(out.join("cri_unchanged.rs"), exports(unchanged)).expect("the exports can be written");
    let without_fields = unchanged.message_type.iter_mut().filter(|message| message.field.is_empty());
    without_fields.for_each(|message| message.field.push(opaque()));
    builder.compile_fds(files).expect("the generated code can be written");
}

/// Names of messages and enumerations.
fn names(file: &FileDescriptorProto) -> Vec<String> {
    let messages = file.message_type.iter().map(|message| message.name());
    messages.chain(file.enum_type.iter().map(|kind| kind.name())).map(str::to_owned).collect()
}

/// A `use` of all types of `k8s-cri` that the file names, and of the modules of those that contain types.
fn exports(file: &FileDescriptorProto) -> String {
    let types = names(file).into_iter().map(|name| name.to_upper_camel_case());
    let containing = file.message_type.iter().filter(|message| !message.enum_type.is_empty());
    let all: Vec<String> = types.chain(containing.map(|message| message.name().to_snake_case())).collect();
    format!("pub use k8s_cri::v1::{{{}}};\n", all.join(", "))
}

/// A field for a message that is described without its fields. prost has a message derive `Copy`, `Eq` and
/// `Hash` where those that it contains could: an empty one could, its type in `k8s-cri` often cannot. With a
/// list of floating point numbers it could not.
fn opaque() -> FieldDescriptorProto {
    FieldDescriptorProto {
        name: Some("opaque".to_owned()),
        number: Some(1),
        label: Some(Label::Repeated.into()),
        r#type: Some(Type::Double.into()),
        ..FieldDescriptorProto::default()
    }
}
