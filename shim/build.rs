//! Generates the messages of `proto/*.proto`, without protoc.

use std::path::PathBuf;

const PROTOS: [&str; 2] = ["bootstrap", "pod_config"];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let out = PathBuf::from(std::env::var_os("OUT_DIR").ok_or("OUT_DIR is not set")?);
    println!("cargo:rerun-if-changed=proto");
    ttrpc_codegen::Codegen::new()
        .out_dir(&out)
        .inputs(PROTOS.map(|name| format!("proto/{name}.proto")))
        .include("proto")
        .rust_protobuf()
        .customize(ttrpc_codegen::Customize {
            gen_mod: false,
            ..Default::default()
        })
        .rust_protobuf_customize(ttrpc_codegen::ProtobufCustomize::default().gen_mod_rs(false))
        .run()?;
    // Inner attributes cannot be included; the module that includes the file carries them.
    for name in PROTOS {
        let path = out.join(format!("{name}.rs"));
        let text: String = std::fs::read_to_string(&path)?
            .lines()
            .filter(|line| !line.starts_with("#![") && !line.starts_with("//!"))
            .flat_map(|line| [line, "\n"])
            .collect();
        std::fs::write(path, text)?;
    }
    Ok(())
}
