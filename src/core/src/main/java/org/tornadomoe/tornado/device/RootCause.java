package org.tornadomoe.tornado.device;

/** What is at the root of a failure, for messages of one line. */
public final class RootCause {
    private RootCause() {}

    /** The root's class and the first line of its message. */
    public static String of(Throwable failure) {
        Throwable root = root(failure);
        return root.getClass().getSimpleName() + ": "
                + message(root).lines().findFirst().orElse("");
    }

    static Throwable root(Throwable failure) {
        Throwable root = failure;
        while (root.getCause() != null) {
            root = root.getCause();
        }
        return root;
    }

    /** Without the colours that TornadoVM puts there. */
    static String message(Throwable root) {
        return String.valueOf(root.getMessage()).replaceAll("\\e\\[[;\\d]*m", "");
    }
}
