package org.tornadomoe.cli;

import java.util.concurrent.Callable;
import picocli.AutoComplete;
import picocli.CommandLine.Command;
import picocli.CommandLine.Model.CommandSpec;
import picocli.CommandLine.Spec;

/** {@code moe completion}: prints a script for shell completion of commands, options and values. */
@Command(
        name = "completion",
        description = "Prints a completion script for bash, and for zsh after bashcompinit.",
        footerHeading = "%nExamples:%n",
        footer = {
            "  . <(moe completion)                       for this shell, if moe is on the path",
            "  moe completion > ~/.local/share/bash-completion/completions/moe"
        })
final class Completion implements Callable<Integer> {
    @Spec
    CommandSpec spec;

    @Override
    public Integer call() {
        spec.commandLine().getOut().print(AutoComplete.bash("moe", spec.root().commandLine()));
        return Moe.DONE;
    }
}
