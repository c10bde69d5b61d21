package org.tornadomoe;

import java.util.concurrent.TimeUnit;

/**
 * A call got no lane: all were busy for the whole waiting time ({@link MoeOptions#laneWait}), or its thread was
 * interrupted before or while it waited. The thread stays interrupted. Nothing was changed; the call can be repeated.
 */
public final class LaneException extends RuntimeException {
    private static final long serialVersionUID = 1L;

    private LaneException(String message, Throwable cause) {
        super(message, cause);
    }

    private LaneException(String message) {
        super(message);
    }

    static LaneException busy(int lanes, long nanos) {
        return new LaneException((lanes == 1 ? "the layer's lane was busy" : "all " + lanes + " lanes were busy")
                + (nanos == 0 ? "" : " for " + TimeUnit.NANOSECONDS.toMillis(nanos) + " ms")
                + " (MoeOptions.laneWait)");
    }

    static LaneException interrupted(InterruptedException cause) {
        return new LaneException("interrupted before a lane was free", cause);
    }
}
