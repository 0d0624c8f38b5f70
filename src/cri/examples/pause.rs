//! The init of a shared process namespace, alone; skiff has it as its hidden `pause` command.

fn main() {
    std::process::exit(skiff_cri::pause::main());
}
