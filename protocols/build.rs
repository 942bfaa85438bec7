//! Compiles the proto files to Rust, without a `protoc` on the machine.

const FILES: [&str; 2] = ["proto/agent.proto", "proto/cri_additions.proto"];

fn main() {
    for file in FILES {
        println!("cargo:rerun-if-changed={file}");
    }
    let files = protox::compile(FILES, ["proto"]).expect("the proto files are valid");
    tonic_prost_build::configure().compile_fds(files).expect("the generated code can be written");
}
