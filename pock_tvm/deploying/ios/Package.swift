// swift-tools-version:5.9
import PackageDescription

let package = Package(
    name: "Pock",
    platforms: [.iOS(.v14)],
    products: [.library(name: "Pock", targets: ["Pock"])],
    targets: [
        .binaryTarget(name: "CPock", path: "CPock.xcframework"),
        .target(name: "Pock", dependencies: ["CPock"], resources: [.copy("weights.bin")]),
    ]
)
