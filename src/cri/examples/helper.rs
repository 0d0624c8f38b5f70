//! The helper processes of the runtime, alone; skiff has them as hidden commands of the same names.

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let code = match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["pause"] => skiff_cri::pause::main(),
        ["keep-fifos", folder] => skiff_cri::keeper::main(folder.as_ref()),
        _ => {
            eprintln!("usage: helper pause | keep-fifos FOLDER");
            2
        }
    };
    std::process::exit(code);
}
