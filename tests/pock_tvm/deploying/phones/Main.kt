/* Trains with the class that a bundle has for Android. */
package pock

import java.io.File
import java.nio.ByteBuffer
import java.nio.ByteOrder

fun numbers(file: File): ByteBuffer = ByteBuffer.wrap(file.readBytes()).order(ByteOrder.nativeOrder())

fun refused(call: () -> Unit) = try {
    call()
    println("not refused")
} catch (error: Exception) {
    println(error.message)
}

fun main(arguments: Array<String>) {
    val folder = File(arguments[0])
    val weights = File(folder, "weights.bin")
    refused { weights.inputStream().use { it.skip(1); Pock(it) } }
    val net = weights.inputStream().use { Pock(it) }
    refused { net.setRate(Float.NaN) }
    net.setRate(0.01f)
    net.setSeed((1L shl 40) + 3)
    val losses = ByteBuffer.allocate(4 * 20).order(ByteOrder.nativeOrder())
    val input = FloatArray(96)
    val target = LongArray(8)
    refused { net.trainStep(input, LongArray(7)) }
    for (step in 0 until 20) {
        numbers(File(folder, "input$step")).asFloatBuffer().get(input)
        numbers(File(folder, "target$step")).asLongBuffer().get(target)
        losses.putFloat(net.trainStep(input, target))
    }
    val output = FloatArray(40)
    net.predict(input, output)
    val state = net.saveState()
    refused { net.loadState(ByteArray(100)) }
    refused { net.predict(ByteBuffer.allocate(384), ByteBuffer.allocate(160)) }
    net.loadState(state)
    net.close()
    net.close()
    refused { net.saveState() }
    File(folder, "losses").writeBytes(losses.array())
    File(folder, "output").writeBytes(ByteBuffer.allocate(160).order(ByteOrder.nativeOrder()).also { it.asFloatBuffer().put(output) }.array())
    File(folder, "state").writeBytes(state)
}
