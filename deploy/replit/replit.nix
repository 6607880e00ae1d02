# Copy to the root of the Repl. sqlite's C source is compiled in: hence gcc. rustup, since nixpkgs' compiler may be too old.
{ pkgs }: {
  deps = [ pkgs.rustup pkgs.gcc ];
}
