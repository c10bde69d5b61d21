package org.tornadomoe.observe;

import jdk.jfr.Category;
import jdk.jfr.DataAmount;
import jdk.jfr.Event;
import jdk.jfr.Label;
import jdk.jfr.Name;
import jdk.jfr.StackTrace;
import jdk.jfr.Timespan;

/**
 * Writes to the JDK's flight recorder: {@code tornadomoe.Layer} when a layer is loaded, {@code tornadomoe.Call} when a
 * call has ended, with its stack, and {@code tornadomoe.Stage} for each of its stages if you ask for stages ({@link
 * #withStages}). It costs almost nothing while nothing is recorded. Only this class needs the module {@code jdk.jfr}.
 */
@SuppressWarnings("UnusedVariable") // the recorder reads the fields
public final class JfrListener implements MoeListener {
    @Name("tornadomoe.Layer")
    @Label("Layer Loaded")
    @Category("tornado-moe")
    @StackTrace(false)
    private static final class LayerEvent extends Event {
        @Label("Backend")
        String backend = "";

        @Label("Kernel Class")
        String kernelClass = "";

        @Label("Device")
        String device = "";

        @Label("Device Memory")
        @DataAmount
        long deviceBytes;

        @Label("Lanes")
        int lanes;
    }

    @Name("tornadomoe.Call")
    @Label("Call")
    @Category("tornado-moe")
    private static final class CallEvent extends Event {
        @Label("Kernel Class")
        String kernelClass = "";

        @Label("Device")
        String device = "";

        @Label("Tokens")
        int tokens;

        @Label("Bytes In")
        @DataAmount
        long bytesIn;

        @Label("Bytes Out")
        @DataAmount
        long bytesOut;

        @Label("Wait for a Lane")
        @Timespan(Timespan.NANOSECONDS)
        long waited;

        @Label("Whole Call")
        @Timespan(Timespan.NANOSECONDS)
        long took;

        @Label("Failure")
        String failure = "";
    }

    @Name("tornadomoe.Stage")
    @Label("Stage")
    @Category("tornado-moe")
    @StackTrace(false)
    private static final class StageEvent extends Event {
        @Label("Stage")
        String stage = "";

        @Label("Kernel Class")
        String kernelClass = "";

        @Label("Tokens")
        int tokens;

        @Label("Time")
        @Timespan(Timespan.NANOSECONDS)
        long took;
    }

    @Override
    public void loaded(Layer layer) {
        LayerEvent event = new LayerEvent();
        if (event.shouldCommit()) {
            event.backend = layer.backend();
            event.kernelClass = layer.kernelClass();
            event.device = layer.device();
            event.deviceBytes = layer.deviceBytes();
            event.lanes = layer.lanes();
            event.commit();
        }
    }

    @Override
    public void called(Call call) {
        CallEvent event = new CallEvent();
        if (event.shouldCommit()) {
            event.kernelClass = call.layer().kernelClass();
            event.device = call.layer().device();
            event.tokens = call.tokens();
            event.bytesIn = call.bytesIn();
            event.bytesOut = call.bytesOut();
            event.waited = call.waitNanos();
            event.took = call.nanos();
            event.failure = call.failure() == null ? "" : call.failure().toString();
            event.commit();
        }
        call.stageNanos().forEach((stage, nanos) -> {
            StageEvent of = new StageEvent();
            if (of.shouldCommit()) {
                of.stage = stage;
                of.kernelClass = call.layer().kernelClass();
                of.tokens = call.tokens();
                of.took = nanos;
                of.commit();
            }
        });
    }
}
