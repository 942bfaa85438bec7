//! Compiles the agent's proto file to Rust, without a `protoc` on the machine.

fn main() {
    println!("cargo:rerun-if-changed=proto/agent.proto");
    let files = protox::compile(["proto/agent.proto"], ["proto"]).expect("proto/agent.proto is valid");
    tonic_prost_build::configure().compile_fds(files).expect("the generated code can be written");
}
