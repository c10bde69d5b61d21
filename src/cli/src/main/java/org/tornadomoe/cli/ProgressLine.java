package org.tornadomoe.cli;

import me.tongfei.progressbar.ProgressBar;
import me.tongfei.progressbar.ProgressBarBuilder;
import me.tongfei.progressbar.ProgressBarStyle;
import org.jspecify.annotations.Nullable;
import org.tornadomoe.quant.Progress;

/** A progress bar on standard error while weights are quantised, if that is a terminal; gone when it is closed. */
final class ProgressLine implements Progress, AutoCloseable {
    private final boolean visible = Output.errorIsTerminal();
    private final String unit;
    private @Nullable ProgressBar bar;

    /** @param unit what is counted, {@code rows} */
    ProgressLine(String unit) {
        this.unit = unit;
    }

    @Override
    public void advanced(long done, long total) {
        if (!visible) {
            return;
        }
        ProgressBar shown = bar;
        if (shown == null) {
            shown = new ProgressBarBuilder()
                    .setTaskName("quantising")
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
    public void close() {
        if (bar != null) {
            bar.close();
        }
    }
}
