package org.tornadomoe.cli;

import me.tongfei.progressbar.ProgressBar;
import me.tongfei.progressbar.ProgressBarBuilder;
import me.tongfei.progressbar.ProgressBarStyle;
import org.jspecify.annotations.Nullable;
import org.tornadomoe.quant.Progress;

/**
 * A progress bar on standard error while weights are read and quantised, if that is a terminal; gone when it is closed.
 */
final class ProgressLine implements Progress, AutoCloseable {
    private final boolean visible = Output.errorIsTerminal();
    private final String unit;
    private @Nullable ProgressBar bar;
    private final boolean measures;
    private double error = Double.NaN;
    private long measured;

    /**
     * @param unit what is counted, {@code rows}
     * @param measures whether the error of the weights is asked for
     */
    ProgressLine(String unit, boolean measures) {
        this.unit = unit;
        this.measures = measures;
    }

    @Override
    public void advanced(long done, long total) {
        if (!visible) {
            return;
        }
        ProgressBar shown = bar;
        if (shown == null) {
            shown = new ProgressBarBuilder()
                    .setTaskName("loading")
                    .setInitialMax(total)
                    .setUnit(" " + unit, 1)
                    .setStyle(ProgressBarStyle.ASCII)
                    .clearDisplayOnFinish()
                    .build();
            bar = shown;
        }
        shown.stepTo(done);
    }

    @Override
    public boolean wantsError() {
        measured = System.nanoTime();
        return measures;
    }

    @Override
    public void quantized(double relativeL2) {
        error = relativeL2;
        measured = System.nanoTime() - measured;
    }

    /** The relative L2 error of the weights against those that are stored; NaN unless measured. */
    double error() {
        return error;
    }

    /** Nanoseconds that measuring took, which no loading does. */
    long measured() {
        return measures ? measured : 0;
    }

    @Override
    public void close() {
        done();
    }

    /** Takes the line away, before something else is printed. */
    void done() {
        ProgressBar shown = bar;
        if (shown != null) {
            shown.close();
            bar = null;
        }
    }
}
