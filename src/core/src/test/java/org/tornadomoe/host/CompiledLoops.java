package org.tornadomoe.host;

/** Whether few tokens are left to Java's loops by now, for tests of layers. */
public final class CompiledLoops {
    private CompiledLoops() {}

    public static boolean multiplyFewTokens() {
        return Int8Products.isCompiled();
    }
}
