package org.tornadomoe.tornado.device;

/** The root cause of a failure, for one-line messages. */
public final class RootCause {
    private RootCause() {}

    /** The root cause's class and the first line of its message. */
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

    /** The message without the colour codes that TornadoVM adds. */
    static String message(Throwable root) {
        return String.valueOf(root.getMessage()).replaceAll("\\e\\[[;\\d]*m", "");
    }
}
